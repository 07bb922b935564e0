"""Denoising layers: their arithmetic, when they draw, what they declare, and that they load back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit import streams
from robustkit.certify import trace
from robustkit.errors import BadInput
from robustkit.models import build, load_model, output_shape, save_model
from robustkit.models.denoiser import Denoiser, Drawing, denoisers

DENSE = "conv(1,4,3,s2,p1)-relu-flatten-dae(64,16)-linear(64,10)"
MAPS = "conv(1,4,3,s2,p1)-relu-dae(4,6,k3,noise=0.5)-flatten-linear(64,10)"
NOISY = "conv(1,4,3,s2,p1)-relu-dae(4,6,k3,noise=0.5,always)-flatten-dae(64,16,noise=0.3,always)-linear(64,10)"


def images(count: int = 8) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def keys(count: int = 8) -> Tensor:
    return streams.row_keys(0, "test", torch.arange(count))


def test_it_is_an_autoencoder_with_tied_weights() -> None:
    layer = Denoiser(5, 3, noise=0.2).eval()
    h = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    weight, up = layer.encoder.weight, lambda v: torch.where(v > 0, v, 0.01 * v)
    code = up(h @ weight.T + layer.encoder.bias)
    torch.testing.assert_close(layer(h), up(code @ weight + layer.bias))
    assert sorted(layer.state_dict()) == ["bias", "encoder.bias", "encoder.weight"]


def test_a_convolutional_one_is_the_dense_one_with_the_convolution_s_matrix() -> None:
    layer = Denoiser(2, 3, kernel=3, noise=0).eval()
    x = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    units = torch.eye(50).view(50, 2, 5, 5)
    matrix = functional.conv2d(units, layer.encoder.weight, padding=1).flatten(1)  # type: ignore[arg-type]
    code = functional.leaky_relu(x.flatten(1) @ matrix + layer.encoder.bias.repeat_interleave(25), 0.01)  # type: ignore[operator]
    expected = functional.leaky_relu(code @ matrix.T + layer.bias.repeat_interleave(25), 0.01)
    torch.testing.assert_close(layer(x), expected.view(4, 2, 5, 5), rtol=1e-4, atol=1e-5)


def test_a_dense_one_takes_maps_too() -> None:
    layer, x = Denoiser(18, 4, noise=0), torch.randn(3, 2, 3, 3)
    assert torch.equal(layer(x).flatten(1), layer(x.flatten(1)))


def test_noise_in_training_only() -> None:
    network = build(DENSE)
    assert not torch.equal(network(images()), network(images()))
    network.eval()
    assert torch.equal(network(images()), network(images()))


def test_the_noise_has_the_size_that_was_asked_for() -> None:
    layer = Denoiser(400, 400, noise=0.3, always=True).eval()
    drawn = layer.noise * layer._drawn(torch.zeros(50, 400))
    assert float(drawn.std()) == pytest.approx(0.3, rel=0.02)
    layer.keys = keys(50)
    assert float((layer.noise * layer._drawn(torch.zeros(50, 400))).std()) == pytest.approx(0.3, rel=0.02)


def test_only_one_that_draws_when_deployed_says_so(tmp_path: Path) -> None:
    for text, random in ((DENSE, False), (MAPS, False), (NOISY, True), (DENSE.replace("16)", "16,noise=0,always)"), False)):
        assert isinstance(build(text), Drawing) is random
        path = tmp_path / "model.safetensors"
        save_model(build(text), path, architecture=text, input_shape=(1, 8, 8), classes=10)
        model = load_model(str(path))
        assert (model.random, str(model.surface)) == (random, "random, vote of 200" if random else "none")


def test_a_drawing_row_depends_on_its_own_key_only() -> None:
    network = build(NOISY).eval()
    whole = network(images(), keys())
    assert torch.equal(whole, network(images(), keys()))
    torch.testing.assert_close(network(images()[2:5], keys()[2:5]), whole[2:5])
    same = network(images()[:1].expand(8, -1, -1, -1), keys())
    assert float((same - same[0]).detach().abs().amax(1)[1:].min()) > 1e-4, "other keys, other noise"
    assert all(part.keys is None for part in denoisers(network).values())
    state = torch.get_rng_state()
    network(images(), keys())
    assert torch.equal(state, torch.get_rng_state())


def test_two_layers_of_a_row_draw_different_noise() -> None:
    network = Drawing(Denoiser(6, 6, always=True), Denoiser(6, 6, always=True)).eval()
    seen: list[Tensor] = []
    for part in denoisers(network).values():
        part.register_forward_pre_hook(lambda module, given: seen.append(module._drawn(given[0])))
    network(torch.zeros(3, 6), keys(3))
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("text", [DENSE, MAPS, NOISY, "res(conv(1,1,3,p1)-dae(64,8)|)-flatten-linear(64,10)"])
def test_it_loads_back_bit_for_bit(tmp_path: Path, text: str) -> None:
    network, path = build(text, seed=3).eval(), tmp_path / "model.safetensors"
    save_model(network, path, architecture=text, input_shape=(1, 8, 8), classes=10)
    model = load_model(str(path))
    given = (images(16), keys(16)) if model.random else (images(16),)
    with torch.no_grad():
        assert torch.equal(model.forward(*given), network(*given))


def test_certifiers_read_it() -> None:
    for text in (DENSE, MAPS):
        network = build(text).eval()
        torch.testing.assert_close(trace(network).network((1, 8, 8)).forward(images()), network(images()))
    with pytest.raises(BadInput, match="randn_like"):
        trace(build(NOISY).eval()).network((1, 8, 8))


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("dae(64)", "hidden units is missing"),
        ("dae(64,8,k2)", "expected an odd kernel"),
        ("dae(64,8,noise=-1)", "standard deviation of at least 0"),
        ("dae(64,8,noise=nan)", "standard deviation of at least 0"),
        ("dae(64,8,noise=much)", "could not convert"),
        ("dae(64,8,sometimes)", "unexpected sometimes"),
    ],
)
def test_what_is_no_denoiser_is_refused(layer: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        build(f"flatten-{layer}-linear(64,10)")


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadInput, match="does not take images"):
        output_shape("flatten-dae(60,8)-linear(64,10)", (1, 8, 8))


def test_a_plain_module_is_no_denoiser() -> None:
    assert denoisers(nn.Sequential(nn.Linear(3, 3))) == {}

"""The certifier: proofs no attack contradicts, in either precision, in any batch, honest about what is no number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustkit import load_data, load_model, registry
from robustkit.attacks import PGD
from robustkit.certify import IBP
from robustkit.certify.ibp import block
from robustkit.classifier import Classifier
from robustkit.errors import BadInput
from robustkit.threats import L2, Linf, Threat

Made = tuple[nn.Module, tuple[int, ...]]


def images(shape: tuple[int, ...], count: int = 16) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(7))


def test_is_found_by_name() -> None:
    assert registry.find("certifier", "ibp") is IBP
    assert registry.make("certifier", "ibp") == IBP()
    assert str(IBP().spec) == "ibp" and IBP().guarantee == "real-arithmetic"


@pytest.mark.parametrize(("threat", "order"), [(Linf("0.1"), 1), (L2("0.1"), 2)])
def test_linear_models_are_bounded_exactly(
    make_network: Callable[..., Made], threat: Threat, order: int, full: Callable[..., Tensor]
) -> None:
    module, shape = make_network("linear")
    mean, std = [0.2, 0.4], [0.5, 0.25]
    classifier = Classifier(module.float(), mean=mean, std=std)
    x = images(shape).double() * 0.5 + 0.25
    y = torch.arange(16) % 4
    scaled = (module[1].weight.detach().view(4, 2, 9) / torch.tensor(std).view(2, 1)).flatten(1).double()  # type: ignore[index]
    logits = classifier.logits64(x)
    clean = logits.gather(1, y[:, None]) - logits
    exact = clean - 0.1 * (scaled[y].unsqueeze(1) - scaled).norm(order, dim=2)
    exact = exact.scatter(1, y[:, None], torch.inf).amin(1)
    bound = IBP().bind(classifier, threat)
    torch.testing.assert_close(bound(x, y, full(16, 0.1)), exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(bound(x.float(), y, full(16, 0.1)), exact.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threat", [Linf("0.02"), L2("0.1")])
def test_no_attack_contradicts_a_proof(network: Made, threat: Threat) -> None:
    module, shape = network
    classifier = Classifier(module.float())
    x = images(shape, 48)
    y = classifier.logits(x).argmax(1)
    certificate = IBP()(classifier, x, y, threat=threat, radius=True)
    proven = certificate.radius > 0
    assert bool(proven.any()), "nothing is proven: the test would be empty"
    for part in torch.linspace(0.9, 1.0, 2):
        for row in proven.nonzero()[:8, 0].tolist():
            eps = threat.at(float(certificate.radius[row]) * float(part))
            assert not bool(PGD(steps=15)(classifier, x[row : row + 1], y[row : row + 1], threat=eps).success.any())


def test_float32_and_float64_agree(network: Made, full: Callable[..., Tensor]) -> None:
    module, shape = network
    bound = IBP().bind(Classifier(module.float()), Linf("0.1"))
    x, y = images(shape), torch.zeros(16, dtype=torch.int64)
    single, double = bound(x, y, full(16, 0.05)), bound(x.double(), y, full(16, 0.05))
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


def test_bounds_are_those_of_others_on_a_real_network(shared_data: Path, full: Callable[..., Tensor]) -> None:
    """Mean worst margins of auto_LiRPA's IBP on the first 100 MNIST test images."""
    classifier = load_model(str(shared_data / "weights" / "mnist-cnn-a-adv.safetensors"))
    x, y = load_data("mnist:n=100", root=shared_data)
    bound = IBP().bind(classifier, Linf("0.1"))
    assert float(bound(x, y, full(100, 0.1)).mean()) == pytest.approx(-17.02, abs=0.01)
    assert float(bound(x, y, full(100, 0.3)).mean()) == pytest.approx(-72.88, abs=0.01)


def test_every_row_has_its_own_budget(make_network: Callable[..., Made], full: Callable[..., Tensor]) -> None:
    module, shape = make_network("conv")
    bound = IBP().bind(Classifier(module.float()), Linf("0.1"))
    x, y = images(shape, 1).expand(16, *shape), torch.zeros(16, dtype=torch.int64)
    eps = torch.linspace(0, 0.5, 16, dtype=torch.float64)
    found = bound(x, y, eps)
    assert bool((found.diff() < 0).all())
    assert torch.equal(found[:1], bound(x, y, full(16, 0.0))[:1])


def test_the_ball_is_bounded_better_than_its_box(make_network: Callable[..., Made], full: Callable[..., Tensor]) -> None:
    module, shape = make_network("conv")
    classifier, x, y = Classifier(module.float()), images(shape), torch.zeros(16, dtype=torch.int64)
    ball = IBP().bind(classifier, L2("0.1"))(x, y, full(16, 0.1))
    assert bool((ball > IBP().bind(classifier, Linf("0.1"))(x, y, full(16, 0.1)) + 1e-3).all())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neither_batch_nor_place_changes_a_bit(threads: int, dtype: torch.dtype) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    front = [nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(400, 33), nn.ReLU()]
    bound = IBP().bind(Classifier(nn.Sequential(*front, nn.Linear(33, 9), nn.Tanh(), nn.Linear(9, 3))), Linf("0.1"))
    x, y, eps = images((1, 20, 20), 150).to(dtype), torch.arange(150) % 3, torch.linspace(0, 0.1, 150, dtype=torch.float64)
    whole = bound(x, y, eps)
    assert len(whole) == 150 and len(bound(x[:0], y[:0], eps[:0])) == 0
    for rows in (16, 47):
        assert torch.equal(torch.cat([bound(*part) for part in zip(x.split(rows), y.split(rows), eps.split(rows))]), whole)
    for row in (0, 31, 76, 149):
        assert torch.equal(bound(x[row : row + 1], y[row : row + 1], eps[row : row + 1]), whole[row : row + 1])
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    assert torch.equal(bound(x[order], y[order], eps[order]), whole[order])


def test_blocks_are_multiples_of_sixteen() -> None:
    assert [block(size, torch.float32, "cpu") % 16 for size in (1, 3136, 1 << 30)] == [0, 0, 0]
    assert block(1 << 30, torch.float32, "cpu") == block(1, torch.float64, "cpu") == 16
    assert block(3136, torch.float32, "cuda") == 512
    assert block(1 << 30, torch.float32, "cuda") == 16


def test_what_is_no_number_is_no_proof(make_network: Callable[..., Made], full: Callable[..., Tensor]) -> None:
    module, shape = make_network("relu")
    classifier = Classifier(module.float())
    x, y = images(shape), torch.zeros(16, dtype=torch.int64)
    bound = IBP().bind(classifier, Linf("0.1"))
    broken = x.clone()
    broken[3, 0, 0, 0] = torch.nan
    found = bound(broken, y, full(16, 0.01))
    assert float(found[3]) == -torch.inf and bool(torch.isfinite(found[:3]).all())
    for value in (torch.nan, torch.inf):
        with torch.no_grad():
            module[-1].bias[0] = value  # type: ignore[index, operator]
        assert bool((IBP().bind(classifier, Linf("0.1"))(x, y, full(16, 0.01)) == -torch.inf).all())
    assert bool((bound(x, y, full(16, -0.1)) == -torch.inf).all())


def test_a_bound_is_of_the_weights_it_was_bound_to(make_network: Callable[..., Made], full: Callable[..., Tensor]) -> None:
    module, shape = make_network("relu")
    bound = IBP().bind(Classifier(module.float(), input_shape=shape), Linf("0.1"))
    x, y = images(shape), torch.zeros(16, dtype=torch.int64)
    before = bound(x, y, full(16, 0.01))
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1)
    assert torch.equal(bound(x, y, full(16, 0.01)), before)


def test_bad_input_is_said_when_bound(full: Callable[..., Tensor]) -> None:
    mish = nn.Sequential(nn.Flatten(), nn.Mish(), nn.Linear(4, 2))
    with pytest.raises(BadInput, match=r"Mish \(in layer '1'\)"):
        IBP().bind(Classifier(mish, input_shape=(1, 2, 2)), Linf("0.1"))
    bound = IBP().bind(Classifier(mish), Linf("0.1"))
    with pytest.raises(BadInput, match=r"Mish \(in layer '1'\)"):
        bound(torch.rand(16, 1, 2, 2), torch.zeros(16, dtype=torch.int64), full(16, 0.1))
    with pytest.raises(BadInput, match="no nn.Module"):
        IBP().bind(Classifier(lambda x: x.flatten(1)), Linf("0.1"))

    class Elsewhere(Linf):
        name = "elsewhere"

    with pytest.raises(BadInput, match="does not work for threat elsewhere"):
        IBP().bind(Classifier(mish), Elsewhere("0.1"))

"""Fortified networks: where denoisers go, what their losses move, what comes out of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit import Classifier, streams
from robustkit.attacks.pgd import PGD
from robustkit.data import Data, load_data
from robustkit.defenses import Fortified, Minibatch, load_recipe
from robustkit.defenses.fortify import distance, fortified_text, fortify, reconstruction_error, states
from robustkit.defenses.inner import Inner
from robustkit.errors import BadInput
from robustkit.models import build, load_model
from robustkit.models.denoiser import Denoiser, denoisers
from robustkit.threats import Linf

Quick = Callable[..., Any]
SMALL = "conv(1,8,3,s2,p1)-relu-flatten-linear(128,10)"


def fortified(recipe: Fortified, arch: str = SMALL) -> nn.Sequential:
    return build(recipe.architecture(arch, (1, 8, 8)))


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, weights = zip(*network.named_parameters())
    found = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True)
    return {name: torch.zeros_like(p) if g is None else g for name, p, g in zip(names, weights, found)}


# ---- where they go


@pytest.mark.parametrize(
    ("layers", "options", "expected"),
    [
        ("", "", "conv(1,8,3,s2,p1)-relu-flatten-dae(128,256,noise=0.1)-linear(128,10)"),
        ("[0,1]", ",kernel=3,hidden=4", "conv(1,8,3,s2,p1)-dae(8,4,k3,noise=0.1)-relu-dae(8,4,k3,noise=0.1)-flatten-linear(128,10)"),
        ("1", ",hidden=9,noise=0,always=true", "conv(1,8,3,s2,p1)-relu-dae(128,9,noise=0.0,always)-flatten-linear(128,10)"),
    ],
)
def test_the_architecture_gets_them_behind_the_chosen_layers(layers: str, options: str, expected: str) -> None:
    recipe = load_recipe("fortified:" + (f"layers={layers}" if layers else "epochs=1") + options)
    assert recipe.architecture(SMALL, (1, 8, 8)) == expected


def test_layers_inside_residual_blocks() -> None:
    text = "res(conv(1,2,3,p1)-relu|conv(1,2,1))-flatten-linear(128,10)"
    made = fortified_text(text, (1, 8, 8), ["0.body.1", "0.shortcut.0", "0"], "4,k3", 3)
    assert made == "res(conv(1,2,3,p1)-relu-dae(2,4,k3)|conv(1,2,1)-dae(2,4,k3))-dae(2,4,k3)-flatten-linear(128,10)"
    assert len(denoisers(build(made))) == 3


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"conv": nn.Conv2d(1, 4, 3, 2, 1), "drop": nn.Dropout(0.5)})
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body["drop"](self.body["conv"](x))).flatten(1))  # type: ignore[no-any-return]


def test_any_network_by_module_name(digits: Data) -> None:
    network = Custom()
    made = fortify(network, ["body.conv", "head"], digits.x[:4], hidden=7, noise=0)
    assert list(denoisers(made)) == ["body.conv.1", "head.1"]
    assert [p.bias.numel() for p in denoisers(made).values()] == [64, 10]
    assert not denoisers(network), "the network given is not changed"
    assert all(part.training for part in made.modules())
    made.eval()
    network.eval()
    one, other = (p for p in denoisers(made).values())
    conv = network.body["conv"](digits.x)
    expected = other(network.head(torch.relu(one(conv)).flatten(1)))
    assert torch.equal(made(digits.x), expected)
    assert Classifier(fortify(network, ["head"], digits.x[:4], always=True)).random


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fortified:layers=9", "unknown layer to fortify '9'"),
        ("fortified:layers=3,kernel=3", r"layer 3 gives \(10,\) for one image"),
        ("fortified:kernel=2", "kernel = 2: expected 0"),
        ("fortified:hidden=0", "hidden = 0"),
        ("fortified:noise=-1", "noise = -1"),
        ("fortified:reconstruction=-1", "reconstruction = -1"),
        ("fortified:clean=2", "clean = 2"),
    ],
)
def test_what_cannot_be_is_refused(text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        load_recipe(text).architecture(SMALL, (1, 8, 8))


def test_a_network_without_denoisers_is_refused() -> None:
    with pytest.raises(BadInput, match="has no flatten"):
        Fortified().architecture("globalavgpool", (1, 8, 8))
    with pytest.raises(BadInput, match="has no denoiser"):
        Fortified().bind(build(SMALL))
    with pytest.raises(BadInput, match="has no denoiser"):
        reconstruction_error(Classifier(build(SMALL)), torch.zeros(1, 1, 8, 8))


# ---- the losses


def test_its_parts_by_hand(batch: Minibatch) -> None:
    recipe = Fortified(noise=0, eps=Fraction(1, 10), steps=3, reconstruction=2, adversarial=3, clean=0.25)
    network = fortified(recipe)
    worst = Inner(PGD(steps=3, step_size=recipe.step_size), network, Linf("0.1"))(batch)
    layer = denoisers(network)["3"]
    clean, moved = (network[:3](x) for x in (batch.x, worst))
    expected = 0.25 * functional.cross_entropy(network(batch.x), batch.y) + 0.75 * functional.cross_entropy(network(worst), batch.y)
    expected = expected + 2 * functional.mse_loss(layer(clean), clean) + 3 * functional.mse_loss(layer(moved), clean)
    torch.testing.assert_close(recipe.bind(network)(batch), expected)


@pytest.mark.parametrize("stop", [True, False])
def test_the_targets_are_constants(batch: Minibatch, stop: bool) -> None:
    recipe = Fortified(noise=0, stop=stop)
    network = fortified(recipe)
    with states(network) as seen:
        network(batch.x)
    ((target, decoded),) = seen
    found = gradients(network, recipe.decoding(seen, seen))
    wanted = gradients(network, 2 * functional.mse_loss(decoded, target.detach()))
    assert all(torch.allclose(found[name], wanted[name], atol=1e-7) for name in found) is stop


@pytest.mark.parametrize("stop", [True, False])
def test_a_constant_target_is_not_pleased_by_shrinking_the_states(batch: Minibatch, stop: bool) -> None:
    """A denoiser that gives zero: the only way to lower its error is to shrink what it should give."""
    recipe = Fortified(noise=0, stop=stop)
    network = fortified(recipe)
    with torch.no_grad():
        denoisers(network)["3"].encoder.weight.zero_()  # type: ignore[operator]
    optimizer = torch.optim.SGD(network[0].parameters(), lr=0.5)
    sizes = []
    for _ in range(20):
        with states(network) as seen:
            network(batch.x)
        sizes.append(float(seen[0][0].detach().square().mean()))
        for name, gradient in gradients(network, recipe.decoding(seen, seen)).items():
            network.get_parameter(name).grad = gradient
        optimizer.step()
    assert (sizes[-1] == sizes[0]) is stop
    assert stop or sizes[-1] < 0.7 * sizes[0]


def test_the_denoiser_learns_to_undo_the_inner_attack(batch: Minibatch) -> None:
    recipe = Fortified(steps=3, noise=0.1, hidden=64, reconstruction=20, adversarial=20, lr=0.003)
    network = fortified(recipe)
    loss, optimizer = recipe.bind(network), torch.optim.Adam(network.parameters(), lr=0.003)
    inner = Inner(PGD(steps=3), network, Linf("0.3"))

    def errors() -> tuple[float, float]:
        worst = inner(batch)
        with torch.no_grad():
            clean, moved = (network[:3](x) for x in (batch.x, worst))
            kept = denoisers(network)["3"].eval()(clean)
            repaired = denoisers(network)["3"](moved)
            scale = float(distance(clean, torch.zeros_like(clean)).mean())
            return float(distance(kept, clean).mean()) / scale, float(distance(repaired, clean).mean() / distance(moved, clean).mean())

    start = errors()
    network.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(60):
            optimizer.zero_grad()
            torch.autograd.backward(loss(batch))
            optimizer.step()
    end = errors()
    assert end[0] < 0.2 * start[0]
    assert end[1] < 0.5 * start[1]


def test_no_hook_is_left_behind(batch: Minibatch) -> None:
    network = fortified(Fortified())
    Fortified(steps=1).bind(network)(batch)
    assert not any(part._forward_hooks for part in network.modules())


# ---- training


def test_the_saved_model_loads_back_bit_for_bit_and_says_what_it_is(quick: Quick) -> None:
    found = quick("fortified:eps=0.1,steps=2,epochs=2,hidden=32")
    assert "flatten-dae(512,32,noise=0.1)-linear" in found.metadata["architecture"]
    assert found.metadata["command"].startswith("robustkit train fortified:epochs=2,eps=0.1,steps=2,hidden=32 ")
    one, two = load_model(str(found.path)), load_model(str(found.path))
    x = load_data("digits:n=64").x
    assert torch.equal(one(x), two(x))
    assert one.surface.plain
    again = quick("fortified:eps=0.1,steps=2,epochs=2,hidden=32", "again/model.safetensors")
    assert again.path.read_bytes() == found.path.read_bytes()


@pytest.mark.parametrize("always", ["false", "true"])
def test_interrupted_it_ends_with_the_same_file(quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, always: str) -> None:
    recipe, calls = f"fortified:eps=0.1,steps=2,epochs=3,hidden=16,always={always}", []
    whole = quick(recipe, "whole/model.safetensors")
    bind = Fortified.bind

    def stopping(self: Fortified, network: nn.Module) -> Callable[[Minibatch], Tensor]:
        loss = bind(self, network)

        def counted(batch: Minibatch) -> Tensor:
            calls.append(batch)
            if len(calls) > 3:
                raise KeyboardInterrupt
            return loss(batch)

        return counted

    monkeypatch.setattr(Fortified, "bind", stopping)
    with pytest.raises(KeyboardInterrupt):
        quick(recipe)
    monkeypatch.setattr(Fortified, "bind", bind)
    again = quick(recipe)
    assert again.resumed == 3
    assert again.path.read_bytes() == whole.path.read_bytes()


def test_one_that_keeps_its_noise_is_judged_by_votes(quick: Quick) -> None:
    model = quick("fortified:eps=0.05,steps=1,epochs=30,hidden=64,noise=0.3,always=true", data="digits:n=700", arch=SMALL).classifier("cpu")
    assert str(model.surface) == "random, vote of 200"
    x, y = load_data("digits:n=32")
    tally = model.tally(x, streams.row_keys(0, "votes", torch.arange(32)))
    assert torch.allclose(tally.sum(1), torch.ones(32))
    assert float((tally.argmax(1) == y).float().mean()) > 0.8
    assert 0 < float(((tally > 0) & (tally < 1)).any(1).float().mean()), "draws differ"


# ---- detection


def test_the_score_is_the_squared_distance_of_each_image(digits: Data) -> None:
    network = build(fortified_text(SMALL, (1, 8, 8), ["1", "2"], "5,noise=0.3"), seed=1).eval()
    model = Classifier(network, mean=[0.5], std=[0.25])
    score = reconstruction_error(model, digits.x[:16])
    first, second = denoisers(network).values()
    h = network[:2]((digits.x[:16] - 0.5) / 0.25)
    flat = first(h).flatten(1)
    expected = (first(h) - h).square().mean((1, 2, 3)) + (second(flat) - flat).square().mean(1)
    torch.testing.assert_close(score, expected)
    torch.testing.assert_close(reconstruction_error(model, digits.x[5:7]), score[5:7])


def test_strange_images_score_higher_than_digits(quick: Quick, digits: Data) -> None:
    from sklearn.metrics import roc_auc_score

    model = quick("fortified:eps=0.1,steps=2,epochs=30,hidden=64", data="digits:n=700", arch=SMALL).classifier("cpu")
    x, _ = load_data("digits:n=128")
    noise = streams.uniform(streams.row_keys(0, "noise", torch.arange(128)), (1, 8, 8))
    with torch.no_grad():
        score = torch.cat([reconstruction_error(model, given) for given in (x, noise)])
    assert roc_auc_score([0] * 128 + [1] * 128, score) > 0.9


def test_gradients_reach_the_image_for_an_adversary(digits: Data) -> None:
    model = Classifier(fortified(Fortified()))
    x = digits.x[:4].clone().requires_grad_()
    (found,) = torch.autograd.grad(reconstruction_error(model, x).sum(), x)
    assert float(found.abs().amax((1, 2, 3)).min()) > 0


def test_the_same_recipe_with_other_weights_is_another_training() -> None:
    assert str(Fortified().spec) != str(replace(Fortified(), adversarial=0.5).spec)
    assert isinstance(fortified(Fortified(always=True))[3], Denoiser)

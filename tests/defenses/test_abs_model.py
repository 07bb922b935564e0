"""Analysis by synthesis: inference against grids and a plain second implementation, its weights and what is fitted to them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_synthesis import images, lively
from torch import Tensor

import robustkit as rk
from robustkit.attacks import Envelope, LatentDescent
from robustkit.classifier import Classifier
from robustkit.defenses import train
from robustkit.defenses.analysis_by_synthesis import fill_published, fitted_factors
from robustkit.defenses.distal import distal
from robustkit.models import build, save_model
from robustkit.models.synthesis import Synthesis, fixed_latents, synthesis_of
from robustkit.models.weights import fill


@pytest.mark.parametrize(("latent", "points"), [(1, 4001), (2, 161)])
def test_energies_are_the_lowest_of_a_grid(latent: int, points: int) -> None:
    network = lively(f"abs(3,{latent},8,starts=100,steps=150)").double()
    model, x = synthesis_of(network), images(6).double()
    line = torch.linspace(-4, 4, points, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line) if latent == 2 else line[:, None]
    found = model.infer(x)[0]
    with torch.no_grad():
        for number, vae in enumerate(model.vaes):
            made = vae.decode(grid).flatten(1)
            energy = torch.cdist(x.flatten(1), made).square() + grid.square().sum(1) / 2
            lowest = energy.min(1).values
            assert float((energy.max(1).values - lowest).min()) > 0.5, "the latents matter"
            assert bool((found[:, number] <= lowest + 1e-9).all())
            torch.testing.assert_close(found[:, number], lowest, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("published", [False, True])
def test_logits_are_those_of_a_plain_second_implementation(published: bool) -> None:
    """Image by image and class by class, the network's own modules, autograd and torch's Adam; also as the authors' code has it."""
    network = lively(f"abs(3,4,8,starts=50,steps=12{',published' * published})", seed=3)
    model, x, starts = synthesis_of(network), images(5), fixed_latents(50, 4)
    logits = Classifier(network).logits(x)
    for i, image in enumerate(x):
        for number, vae in enumerate(model.vaes):
            for parameter in vae.parameters():
                parameter.requires_grad_(False)

            def energy(z: Tensor, vae: Any = vae, image: Tensor = image) -> Tensor:
                made = torch.sigmoid(vae.Decoder(z.view(-1, 4, 1, 1)))
                return (image - made).pow(2).sum((1, 2, 3)) + 0.5 * (z.view(-1, 4) ** 2).sum(1)

            z = starts[energy(starts).argmin()].clone().requires_grad_()
            optimiser, seen = torch.optim.Adam([z], lr=0.05), []
            for _ in range(12 - published):
                optimiser.zero_grad()
                loss = energy(z)
                seen.append(float(loss.detach()))
                (loss.sum() / 64).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                with torch.no_grad():
                    if published and float(z.norm()) > 5:
                        z.abs_()
                    z.mul_(min(1.0, 5 / float(z.norm())))
            seen.append(float(energy(z.detach())))
            assert float(logits[i, number]) == pytest.approx(-(seen[-1] if published else min(seen)) / 64, rel=1e-4)


def test_no_answer_depends_on_its_batch() -> None:
    classifier, x = Classifier(lively("abs(4,3,8,starts=60,steps=15)")), images(21)
    whole = classifier.logits(x)
    assert torch.equal(whole, torch.cat([classifier.logits(one[None]) for one in x]))
    assert torch.equal(whole.flip(0), classifier.logits(x.flip(0)))
    assert torch.equal(classifier.logits(x[:3].repeat_interleave(6, 0)), whole[:3].repeat_interleave(6, 0))
    assert classifier.logits(x[:0]).shape == (0, 4)


def test_remembered_solutions_and_tables_are_forgotten_with_the_weights() -> None:
    network = lively("abs(3,2,8,starts=60,steps=15)")
    model, x = synthesis_of(network), images(12)
    first, z = model(x), model.infer(x)[1]
    order = torch.tensor([7, 2, 2, 11])
    assert torch.equal(model.solution(x[order]), z[order])
    assert torch.equal(model.solution(images(4, seed=9)), model.infer(images(4, seed=9))[1])
    with torch.no_grad():
        model.vaes[1].Decoder.get_submodule("conv_1").get_parameter("bias").add_(0.5)
    assert not torch.equal(model.solution(x), z)
    second = model(x)
    assert torch.equal(first[:, [0, 2]], second[:, [0, 2]])
    assert float((first - second)[:, 1].abs().min()) > 1e-3
    fresh = lively("abs(3,2,8,starts=60,steps=15)")
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh(x), second)


def test_start_latents_are_the_likeliest_of_a_normal_sample() -> None:
    z = fixed_latents(900, 2)
    assert torch.equal(z, fixed_latents(900, 2))
    length = z.square().sum(1)
    assert float(length.max()) == pytest.approx(-2 * math.log(0.1), rel=0.1), "90 % of a two-dimensional normal lie within"
    assert float(z.mean().abs()) < 0.1


def test_published_weights_fit_by_name() -> None:
    """The names and shapes of the authors' files, typed out; written by a torch without batch counters."""
    maps = {"Encoder": [(32, 1, 5, 5), (32, 32, 4, 4), (64, 32, 3, 3), (16, 64, 5, 5)]}
    maps |= {"Decoder": [(8, 32, 4, 4), (32, 16, 5, 5), (16, 16, 5, 5), (16, 1, 4, 4)]}
    published: dict[str, Tensor] = {}
    for side, shapes in maps.items():
        for number, shape in enumerate(shapes):
            out = shape[0] if side == "Encoder" else shape[1]
            published[f"{side}.conv_{number}.weight"] = torch.full(shape, 0.01 * number)
            published[f"{side}.conv_{number}.bias"] = torch.ones(out)
            if number < 3:
                published |= {f"{side}.bn_{number}.{name}": torch.ones(out) for name in ("weight", "bias", "running_mean", "running_var")}
    network = build("abs(2,8,starts=16,steps=1)")
    fill_published(network, [published, {k: v + 1 for k, v in published.items()}])
    for number, vae in enumerate(synthesis_of(network).vaes):
        held = {k: v for k, v in vae.state_dict().items() if not k.endswith("num_batches_tracked")}
        assert held.keys() == published.keys()
        assert all(torch.equal(v, published[k] + number) for k, v in held.items())
    assert Classifier(network).logits(torch.zeros(1, 1, 28, 28)).shape == (1, 2)
    with pytest.raises(rk.BadInput, match="2 classes"):
        fill_published(network, [published])
    with pytest.raises(rk.BadInput, match="class 1 do not fit"):
        fill_published(network, [published, {}])


def test_files_without_factors_have_them_all_one(tmp_path: Path) -> None:
    network = lively("abs(3,2,8,starts=20,steps=2)")
    synthesis_of(network).factors.copy_(torch.tensor([0.5, 1.0, 2.0]))
    path, x = tmp_path / "factors.safetensors", images(3)
    save_model(network, path, architecture="abs(3,2,8,starts=20,steps=2)", input_shape=(1, 8, 8), classes=3)
    held = rk.load_model(path)
    energies = synthesis_of(network).infer(x)[0]
    assert torch.equal(held.logits(x), energies * torch.tensor([0.5, 1.0, 2.0]) / -64)
    older = {key: value for key, value in network.state_dict().items() if not key.endswith("factors")}
    for load in (lambda net: net.load_state_dict(older), lambda net: fill(net, older, "here")):
        fresh = lively("abs(3,2,8,starts=20,steps=2)", seed=7)
        synthesis_of(fresh).factors.fill_(3)
        load(fresh)
        assert torch.equal(fresh(x), energies / -64)


def test_fitted_factors_undo_a_handicap() -> None:
    truth, share = torch.tensor([0.7, 1.0, 1.1, 1.3]), torch.Generator().manual_seed(0)
    energies = torch.rand(20000, 4, generator=share) * 5 + 10
    y = torch.distributions.Categorical(logits=-2 * energies * truth).probs.multinomial(1, generator=share)[:, 0]
    found = fitted_factors(energies, y)
    torch.testing.assert_close(found, truth / truth.log().mean().exp(), rtol=0.03, atol=0)
    assert float(found.log().mean()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abs(10,8,12)", "8"),
        ("abs(1,8)", "at least 2"),
        ("abs(10)", "latent"),
        ("abs(10,8,steps=0.5)", "whole"),
        ("abs(10,8)-relu", "whole network"),
    ],
)
def test_mistakes_in_the_architecture_are_told(text: str, message: str) -> None:
    with pytest.raises(rk.BadInput, match=message):
        build(text)


def test_other_mistakes_are_told(tmp_path: Path) -> None:
    plain = rk.load_model("zoo:digits-standard")
    x, y = rk.load_data("digits:n=4")
    for attack in (LatentDescent(), Envelope()):
        with pytest.raises(rk.BadInput, match="analysis by synthesis"):
            attack(plain, x, y, threat="linf:0.1")
    for make, message in ((lambda: LatentDescent(steps=0), "at least 1"), (lambda: Envelope(inner=0), "at least 1")):
        with pytest.raises(rk.BadInput, match=message):
            make()
    with pytest.raises(rk.BadInput, match="unknown loss"):
        Envelope(loss="x")  # type: ignore[arg-type]
    for recipe, message in (("abs:weight=0.5", "weight"), ("abs:fall=0", "fall"), ("abs:latent=0", "latent")):
        with pytest.raises(rk.BadInput, match=message):
            train(recipe, "digits", out=tmp_path / "x.safetensors")
    coloured = rk.data.as_data(torch.zeros(4, 3, 8, 8), torch.arange(4) % 2)
    with pytest.raises(rk.BadInput, match="8x8"):
        train("abs", coloured, out=tmp_path / "x.safetensors")
    with pytest.raises(rk.BadInput, match="above 0"):
        distal(plain, (1, 8, 8), steps=0)
    assert Synthesis(2, 1, 8).steps == 50

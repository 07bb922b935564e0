"""Analysis by synthesis: inference against grids and a plain second implementation, the envelope's gradient
against differences, the bound against closed forms, attacks and random changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustkit as rk
from robustkit import registry, streams
from robustkit.attacks import PGD, Envelope, LatentDescent
from robustkit.certify import SynthesisBound
from robustkit.certifying import certify_images
from robustkit.classifier import Classifier
from robustkit.defenses import train
from robustkit.defenses.analysis_by_synthesis import fill_published, fitted_factors
from robustkit.defenses.binarised import Binarised, line_search
from robustkit.defenses.distal import confidence, distal
from robustkit.models import build, save_model
from robustkit.models.synthesis import Synthesis, fixed_latents, synthesis_of
from robustkit.models.weights import fill
from robustkit.threats import load_threat


def images(count: int, seed: int = 0) -> Tensor:
    return streams.uniform(streams.row_keys(seed, "images", torch.arange(count)), (1, 8, 8))


def lively(text: str, seed: int = 0) -> nn.Module:
    """A network whose decoders make something of their latents: larger weights, statistics that are not 0 and 1."""
    network = build(text, seed).eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for name, value in network.named_parameters():
            if "Decoder" in name:
                value.add_(0.3 * torch.randn_like(value))
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None and part.running_var is not None:
                part.running_mean.copy_(0.3 * torch.randn_like(part.running_mean))
                part.running_var.copy_(0.5 + torch.rand_like(part.running_var))
    return network


def still(text: str, seed: int = 0) -> nn.Module:
    """A network whose reconstructions do not depend on the latents: nearest of a few fixed images."""
    network = lively(text, seed)
    with torch.no_grad():
        for vae in synthesis_of(network).vaes:
            vae.Decoder.get_submodule("conv_0").get_parameter("weight").zero_()
    return network


def centres(network: nn.Module) -> Tensor:
    """(K,D) the fixed images of a still network."""
    model = synthesis_of(network)
    with torch.no_grad():
        return torch.cat([vae.decode(torch.zeros(1, model.latent)).flatten(1) for vae in model.vaes])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A small one for the digits, trained for a moment."""
    out = tmp_path_factory.mktemp("abs") / "digits.safetensors"
    made = train("abs:epochs=7,batch=100,lr=0.01", "digits", arch="abs(10,4,8,starts=200,steps=20)", out=out, progress=False)
    return made.classifier("cpu")


@pytest.fixture(scope="module")
def digits() -> Any:
    return rk.load_data("digits")


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


def test_the_envelopes_gradient_is_that_of_the_deployed_model() -> None:
    network = lively("abs(3,2,8,starts=200,steps=150)", seed=1).double()
    model, x, h = synthesis_of(network), images(2, seed=4).double(), 1e-3
    leaf = x.clone().requires_grad_()
    logits = model.envelope(leaf)
    assert not model(leaf).requires_grad
    torch.testing.assert_close(logits.detach(), model(x), rtol=1e-9, atol=1e-9)
    for number in range(3):
        (gradient,) = torch.autograd.grad(logits[:, number].sum(), leaf, retain_graph=True)
        for pixel in (20, 37):
            step = torch.zeros(64, dtype=torch.float64).index_fill_(0, torch.tensor([pixel]), h).view(1, 1, 8, 8)
            slope = (model(x + step)[:, number] - model(x - step)[:, number]) / (2 * h)
            torch.testing.assert_close(gradient.flatten(1)[:, pixel], slope, rtol=2e-3, atol=2e-3)


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


def test_the_bound_is_exact_where_reconstructions_are_fixed() -> None:
    """Then E_c is the squared distance d_c to a fixed image, and the bound (d_c - d_y) / 2 for the nearest other."""
    classifier = Classifier(still("abs(3,1,8,starts=50,steps=30)", seed=2), input_shape=(1, 8, 8))
    x = images(10)
    y = classifier.logits(x).argmax(1)
    apart = torch.cdist(x.flatten(1), centres(classifier.original)).double()  # type: ignore[arg-type]
    own = apart.gather(1, y[:, None])[:, 0]
    expected = (apart.scatter(1, y[:, None], math.inf).amin(1) - own) / 2
    found = certify_images(SynthesisBound(), classifier, x, y, threat="l2:1", radius=True)
    assert found.guarantee.startswith("conditional(")
    torch.testing.assert_close(found.radius, expected, rtol=0.02, atol=2e-3)
    bound = SynthesisBound().bind(classifier, load_threat("linf:0.1"))
    for eps in (0.0, 0.05):  # in l_inf by hand: every pixel as far as it may go, towards the others and away from the label's
        low, high = (x.flatten(1) - eps).clamp(0, 1), (x.flatten(1) + eps).clamp(0, 1)
        rows = [((low - c).clamp(min=0) + (c - high).clamp(min=0)).square().sum(1) for c in centres(classifier.original)]  # type: ignore[arg-type]
        best = torch.stack(rows, 1).scatter(1, y[:, None], math.inf).amin(1)
        mine = centres(classifier.original)[y]  # type: ignore[arg-type]
        worst = torch.maximum((low - mine).square(), (high - mine).square()).sum(1)
        margin = bound(x, y, torch.full((10,), eps, dtype=torch.float64))
        torch.testing.assert_close(margin, (best - worst) / 64, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("factors", [(1.0, 1.0, 1.0), (0.8, 1.2, 1.0)])
@pytest.mark.parametrize("family", ["l2", "linf"])
def test_the_bound_is_never_contradicted_where_its_assumption_holds(family: str, factors: tuple[float, ...]) -> None:
    """One latent value and many starts: the descent finds the global minimum (see the grid above)."""
    network = lively("abs(3,1,8,starts=100,steps=40)", seed=5)
    synthesis_of(network).factors.copy_(torch.tensor(factors))
    classifier = Classifier(network, input_shape=(1, 8, 8))
    x = images(16, seed=6)
    y = classifier.logits(x).argmax(1)
    certificate = certify_images(SynthesisBound(), classifier, x, y, threat=f"{family}:1", radius=True)
    assert int((certificate.radius > 0.001).sum()) > 8
    threat = load_threat(f"{family}:1")
    bound = SynthesisBound().bind(classifier, threat)
    for share in (0.5, 1.0, 3.0):  # beyond the radius the margin is negative, and still a bound
        eps = certificate.radius.clamp(min=1e-3) * share
        least = bound(x, y, eps)
        for draw in range(3):
            p = threat.random(x, eps, streams.row_keys(draw, "within", torch.arange(16)), boundary=True)
            logits = classifier.logits(threat.apply(x, p))
            margin = logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -math.inf).amax(1)
            assert bool((margin >= least - 1e-3).all())
    for at in range(0, 16, 8):
        part = slice(at, at + 8)
        radius = float(certificate.radius[part].clamp(min=0).min())
        broken = Envelope(steps=10, inner=10)(classifier, x[part], y[part], threat=threat.at(f"{radius:.6f}"))
        assert not bool(broken.success.any())


def test_latent_descent_finds_the_crossing_on_the_way(trained: Classifier, digits: Any) -> None:
    """Towards a fixed image g the class changes where the bisecting plane is crossed: known exactly."""
    network = still("abs(3,1,8,starts=50,steps=30)", seed=2)
    classifier, x, g = Classifier(network), images(12), centres(network)
    y = classifier.logits(x).argmax(1)
    apart = torch.cdist(x.flatten(1), g).square()
    result = LatentDescent(steps=5, halvings=12, rounds=1, targets=2)(classifier, x, y, threat="l2:9")
    assert bool(result.success.all())
    ways = []
    for other in range(3):
        way, own = g[other] - x.flatten(1), g[y]
        # |x + t way - g_y|^2 = |x + t way - g_other|^2, linear in t
        slope = 2 * (way * (g[other] - own)).sum(1)
        share = (apart[:, other] - apart.gather(1, y[:, None])[:, 0]) / slope
        ways.append(torch.where(y == other, math.inf, share * way.norm(dim=1)))
    shortest = torch.stack(ways, 1).amin(1).double()
    assert bool((result.size >= shortest * 0.999).all())
    given = classifier.logits(result.adversarial).argmax(1)
    assert bool((given != y).all())


@pytest.mark.parametrize(
    "attack", [LatentDescent(steps=4, halvings=4, rounds=2), Envelope(steps=8, every=4, restarts=2)], ids=lambda a: a.name
)
def test_attacks_on_latents_in_any_batch(attack: Any, trained: Classifier, digits: Any) -> None:
    x, y = digits.images(slice(0, 20)), digits.y[:20]
    found, other = (attack(trained, x, y, threat="linf:0.25", batch_size=size) for size in (64, 1))
    hit = found.success
    assert int(hit.sum()) > 3
    assert bool((trained.logits(found.adversarial[hit]).argmax(1) != y[hit]).all())
    for name in ("adversarial", "success", "queries", "gradients"):
        assert torch.equal(getattr(found, name), getattr(other, name)), name


def test_training_reaches_a_classifier_that_says_what_made_it(trained: Classifier, digits: Any) -> None:
    logits = trained.logits(digits.x)
    assert float((logits.argmax(1) == digits.y).float().mean()) > 0.85
    assert trained.metadata["architecture"] == "abs(10,4,8,starts=200,steps=20)"
    assert "epochs=7" in trained.metadata["recipe"]
    loss = float(trained.metadata["train_loss"])
    assert loss < float(digits.x.flatten(1).var(0).sum()), "better than the mean image"


def test_the_engine_sees_through_the_missing_gradient_by_itself(
    trained: Classifier, digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustkit.diagnostics.Examination.run", lambda self: [])  # thousands of queries, each a descent
    x, y = digits.images(slice(0, 32)), digits.y[:32]
    options: dict[str, Any] = {"attacks": ["pgd:steps=10,loss=margin"], "certifiers": ["abs"], "report": False, "progress": False}
    found = rk.evaluate(trained, (x, y), "l2:0.7", out=tmp_path / "run", **options).summary()
    assert [stage["name"] for stage in found["stages"]][:3] == ["abs", "pgd surrogate", "pgd deployed"]
    assert found["certified_accuracy"] == 0
    assert 0 <= found["certified_conditional"] <= found["robust_accuracy"]
    blind = PGD(steps=10, loss="margin")(lambda image: trained.module(image), x, y, threat="l2:0.7")  # type: ignore[operator]
    assert found["robust_accuracy"] < found["clean_accuracy"] - float(blind.success.float().mean()) - 0.2


def test_black_and_white_only(trained: Classifier, digits: Any) -> None:
    base = trained
    made = registry.make("wrapper", "binary:factors=[1,1,1,1,1,1,1,1,1.1,1]").wrap(base)
    assert isinstance(made.module, Binarised)
    x, y = digits.images(slice(0, 24)), digits.y[:24]
    plain = base.logits((x >= 0.5).float())
    plain[:, 8] *= 1.1
    assert torch.equal(made.logits(x), plain)
    leaf = x.clone().requires_grad_()
    assert not made.forward(leaf).requires_grad
    (gradient,) = torch.autograd.grad(made.surrogate(leaf).logsumexp(1).sum(), leaf)
    near = (x - 0.5).abs() < 0.1
    assert float(gradient[near].abs().mean()) > 3 * float(gradient[~near].abs().mean()) > 0
    right = made.logits(x).argmax(1) == y
    adaptive = Envelope(steps=20, every=5)(made, x, y, threat="linf:0.3").success | ~right
    blind = PGD(steps=10, loss="margin")(lambda image: made.module(image), x, y, threat="linf:0.3").success | ~right  # type: ignore[operator]
    assert int(adaptive.sum()) > int(blind.sum())
    descent = LatentDescent(steps=4, halvings=5)(made, x, y, threat="l0:64")
    assert bool((descent.success | ~right).all()), "the reconstruction itself is of another class"
    for spec, message in (("binary:factors=[1,2]", "2 factors"), ("binary:factors=[0]", "above 0")):
        with pytest.raises(rk.BadInput, match=message):
            registry.make("wrapper", spec).wrap(base)
    with pytest.raises(rk.BadInput, match="no analysis by synthesis"):
        SynthesisBound().bind(made, load_threat("l2:1"))


def test_the_line_search_undoes_a_handicap() -> None:
    logits = -5 - 5 * streams.uniform(streams.row_keys(0, "energies", torch.arange(300)), (4,))
    y = logits.argmax(1)
    handicap = torch.tensor([1.0, 1.05, 0.96, 1.0])
    found = torch.tensor(line_search(logits * handicap, y))
    before, after = (float(((logits * handicap * f).argmax(1) == y).float().mean()) for f in (torch.ones(4), found))
    assert before < 0.95 < 0.985 < after
    assert torch.allclose(found * handicap / (found[0] * handicap[0]), torch.ones(4), atol=0.02)
    assert line_search(logits, y) == (1.0, 1.0, 1.0, 1.0)


def test_noise_is_explained_by_no_class(trained: Classifier, digits: Any) -> None:
    noise = images(16, seed=2)
    strange, usual = (confidence(trained, v).amax(1).median() for v in (noise, digits.images(slice(0, 64))))
    assert float(strange) < 0.25 < float(usual) - 0.05
    found = distal(trained, (1, 8, 8), count=10, steps=8)
    assert float(found.before.mean()) < 0.3
    assert bool((found.images >= 0).all() & (found.images <= 1).all())
    assert float(found.moved.min()) > 0.5
    assert torch.equal(found.images, distal(trained, (1, 8, 8), count=10, steps=8).images)
    assert "noise images" in str(found)
    plain = distal(rk.load_model("zoo:digits-standard"), (1, 8, 8), count=10, steps=8)
    assert float(plain.after.mean()) > 0.9 > float(found.after.mean())


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

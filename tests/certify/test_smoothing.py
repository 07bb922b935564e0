"""Randomized smoothing: the statistics against exact probabilities, the draws, the whole through the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest, norm
from torch import Tensor, nn

import robustkit as rk
from robustkit import streams
from robustkit.binomial import lower_bound
from robustkit.certify.pixeldp import PixelDP, pixeldp_radius
from robustkit.certify.renyi import Renyi, renyi_radius
from robustkit.certify.smoothing import SmoothingCertifier, radius_of
from robustkit.classifier import Classifier
from robustkit.models.smoothed import BLOCK, Smoothing, smooth_options, smoothed
from robustkit.spec import number


class Halfspace(nn.Module):
    """Class 1 where the first pixel is above 1/2: the smoothed class probability is known."""

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1)[:, 0] - 0.5
        return torch.stack([-value, value], 1)


def images(values: list[float]) -> Tensor:
    x = torch.full((len(values), 1, 2, 2), 0.3)
    x[:, 0, 0, 0] = torch.tensor(values)
    return x


@pytest.mark.parametrize(("k", "n", "alpha"), [(0, 10, 0.1), (1, 10, 0.1), (99, 100, 0.001), (100, 100, 0.001), (9990, 10_000, 0.001)])
def test_confidence_bounds_are_clopper_pearson(k: int, n: int, alpha: float) -> None:
    exact = binomtest(k, n).proportion_ci(1 - 2 * alpha, method="exact").low
    assert float(lower_bound(k, n, alpha)) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("probability", [0.501, 0.9, 0.999])
def test_the_stated_level_holds(probability: float) -> None:
    """20 000 repetitions at alpha 0.05: bounds above the truth are no more frequent than an exact binomial allows."""
    generator, alpha, n = np.random.default_rng(3), 0.05, 100
    k = generator.binomial(n, probability, size=20_000)
    wrong = int((lower_bound(k, n, alpha) > probability).sum())
    assert binom.sf(wrong - 1, 20_000, alpha) > 1e-4
    tight = float(sum(binom.pmf(i, n, probability) for i in range(n + 1) if lower_bound(i, n, alpha) > probability))
    assert tight <= alpha


def test_radii_have_the_published_form_and_are_rounded_down() -> None:
    p = np.array([0.3, 0.5, 0.6, 0.99, 1 - 1e-9])
    gauss, uniform, laplace = (radius_of(noise, p, 0.5) for noise in ("gaussian", "uniform", "laplace"))
    above = p > 0.5
    exact = (0.5 * norm.ppf(p[above]), 2 * 0.5 * (p[above] - 0.5), -0.5 * np.log(2 * (1 - p[above])))
    for found, want in zip((gauss, uniform, laplace), exact):
        assert bool((found[~above] == 0).all())
        assert bool((found[above] <= want).all())
        assert np.allclose(found[above], want, rtol=1e-9)


def test_pixeldp_and_renyi_stay_below_the_tight_radius() -> None:
    p, q = (v.flatten() for v in np.meshgrid(np.linspace(0.02, 0.999999, 60), np.linspace(1e-6, 0.98, 60)))
    inside = (p > q) & (p + q <= 1)
    p, q = p[inside], q[inside]
    tight = 0.5 / 2 * (norm.ppf(p) - norm.ppf(q))
    private, divergence = pixeldp_radius(p, q, 0.5), renyi_radius(p, q, 0.5)
    assert bool((divergence <= tight).all())
    assert bool((private <= tight).all())
    majority = p > 0.5
    assert bool((private[majority] <= divergence[majority] + 1e-9).all())
    assert float((divergence / tight).max()) > 0.7
    assert 0 < float(private.max()) < float(divergence.max())


@pytest.mark.parametrize("certifier", [PixelDP(n=2000), Renyi(n=2000)], ids=lambda c: c.name)
def test_they_certify_the_same_model_by_less(certifier: Any) -> None:
    x, y = images([0.7, 0.9, 0.99, 0.3]), torch.ones(4, dtype=torch.int64)
    model = smoothed(Classifier(Halfspace(), classes=2), Smoothing(number("0.25")))
    found = certifier(model, x, y, threat="l2:0.1", radius=True).radius
    tight = SmoothingCertifier(n=2000)(model, x, y, threat="l2:0.1", radius=True).radius
    assert bool((found <= tight).all())
    assert float(found[2]) > 0
    assert float(found[3]) == -np.inf


@pytest.mark.parametrize("noise", ["gaussian", "uniform", "laplace"])
@pytest.mark.parametrize("looks", [1, 5])
def test_certified_radii_stay_below_the_true_ones(noise: str, looks: int) -> None:
    """Of a half-space classifier the distance to the boundary is the true radius of the smoothed one too, in l2 and in l1."""
    values = [0.5 + 0.02 * i for i in range(1, 25)]
    x, y = images(values), torch.ones(24, dtype=torch.int64)
    smoothing = Smoothing(number("0.25"), noise)  # type: ignore[arg-type]
    certifier = SmoothingCertifier(n=2000, looks=looks)
    threat = "l2:0.1" if noise == "gaussian" else "l1:0.1"
    found = certifier(smoothed(Classifier(Halfspace(), classes=2), smoothing), x, y, threat=threat, radius=True)
    distance = torch.tensor(values, dtype=torch.float64) - 0.5
    assert bool((found.radius <= distance).all())
    assert found.guarantee == "statistical(0.001)"
    assert int((found.radius > 0.3 * distance).sum()) > 12, "and are not much below them"


def test_draws_do_not_depend_on_the_batch_or_on_the_others() -> None:
    module = smoothed(Classifier(Halfspace(), classes=2), Smoothing(number("0.5"))).module
    assert isinstance(module, nn.Module)
    counts: Any = module.counts
    x, keys = images([0.1, 0.4, 0.55, 0.9]), streams.row_keys(1, "draws", torch.arange(4))
    whole = counts(x, keys, 0, 300)
    assert whole.sum(1).tolist() == [300] * 4
    for i in range(4):
        assert torch.equal(counts(x[i : i + 1], keys[i : i + 1], 0, 300), whole[i : i + 1])
    parts = sum(counts(x, keys, a, b) for a, b in ((0, 10), (10, BLOCK + 1), (BLOCK + 1, 300)))
    assert torch.equal(parts, whole)
    truth = norm.cdf((np.array([0.1, 0.4, 0.55, 0.9]) - 0.5) / 0.5)
    many = counts(x, keys, 0, 6400)[:, 1].numpy() / 6400
    assert bool((np.abs(many - truth) < 4 * np.sqrt(truth * (1 - truth) / 6400)).all())


@pytest.mark.parametrize(("noise", "deviation"), [("gaussian", 0.2), ("uniform", 0.2), ("laplace", 0.2)])
def test_sigma_is_the_standard_deviation_of_all_noise(noise: str, deviation: float) -> None:
    class Echo(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    module: Any = smoothed(Classifier(Echo()), Smoothing(number("0.2"), noise)).module  # type: ignore[arg-type]
    drawn = module(torch.zeros(64, 1, 20, 20), streams.row_keys(0, "x", torch.arange(64)))
    assert float(drawn.std()) == pytest.approx(deviation, rel=0.03)
    assert abs(float(drawn.mean())) < 0.005


def test_sampling_ends_where_nothing_is_left_to_decide() -> None:
    """At a budget: hopeless samples end early with one look, clear ones too with five, and no verdict is lost."""
    values = [0.52, 0.6, 0.9, 0.99]
    x, y = images(values), torch.ones(4, dtype=torch.int64)
    model = smoothed(Classifier(Halfspace(), classes=2), Smoothing(number("0.25")))
    verdicts, spent = [], []
    for looks in (1, 5):
        sample = SmoothingCertifier(n=10_000, looks=looks).sample(model, rk.L2("0.2"), 0)
        radius, _, draws, *_ = sample(torch.arange(4), x, y, torch.full((4,), 0.2, dtype=torch.float64), lambda: None)
        verdicts.append((radius >= 0.2).tolist())
        spent.append(draws.tolist())
    assert verdicts[0] == verdicts[1] == [False, False, True, True]
    assert max(spent[0][:2]) < 1000 < spent[0][3] == 10_100, "what is out of reach is given up soon"
    assert spent[1][3] < 2000


@pytest.mark.parametrize("looks", [1, 5])
def test_the_level_holds_at_a_budget_just_out_of_reach(looks: int) -> None:
    """1500 images whose true radius is a hair below the budget: no more are certified than alpha allows, looks or not."""
    x, y = images([0.7] * 1500), torch.ones(1500, dtype=torch.int64)
    model = smoothed(Classifier(Halfspace(), classes=2), Smoothing(number("0.25")))
    sample = SmoothingCertifier(n=500, n0=10, looks=looks, alpha=number("0.05")).sample(model, rk.L2("0.2"), 0)
    found, *_ = sample(torch.arange(1500), x, y, torch.full((1500,), 0.2 + 1e-6, dtype=torch.float64), lambda: None)
    wrong = int((found >= 0.2 + 1e-6).sum())
    assert binom.sf(wrong - 1, 1500, 0.05) > 1e-3
    assert wrong > 5, "and the level is made use of"


def test_the_engine_keeps_statistical_certificates_apart(tmp_path: Path) -> None:
    run = rk.certify("zoo:digits-standard", "digits:n=40", "l2:0.2", method="smoothing:sigma=0.25,n=1000", out=tmp_path / "run")
    answer = run.summary()
    assert answer["model"]["spec"].startswith("smooth:(zoo:digits-standard),sigma=1/4")
    assert answer["certified_accuracy"] == 0.0 < answer["certified_statistical"] < answer["clean_accuracy"]
    again = rk.certify("zoo:digits-standard", "digits:n=30", "l2:0.2", method="smoothing:sigma=0.25,n=1000", out=tmp_path / "fewer")
    one, other = (np.load(r.folder / "samples.npz")["lower_statistical"] for r in (again, run))
    assert np.array_equal(one, other[:30])


def test_no_attack_contradicts_more_certificates_than_alpha_allows(tmp_path: Path) -> None:
    options: dict[str, Any] = {"attacks": ["pgd:steps=10"], "certifiers": ["smoothing:n=1000"], "report": False}
    run = rk.evaluate("smooth:(zoo:digits-standard),sigma=0.25,votes=200", "digits:n=30", "l2:1", out=tmp_path / "run", **options)
    held = np.load(run.folder / "samples.npz")
    assert int((held["upper"] <= 1).sum()) > 10, "the attack breaks many"
    assert int((held["lower_statistical"] >= held["upper"]).sum()) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": number("0")}, "above 0"),
        ({"n": 50, "n0": 100}, "at least n0"),
        ({"alpha": number("1")}, "below 1"),
        ({"looks": 11}, "1 to 10"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(rk.BadInput, match=message):
        SmoothingCertifier(**options)


def test_only_its_own_smoothed_model_is_certified() -> None:
    x, y = images([0.9]), torch.ones(1, dtype=torch.int64)
    plain = Classifier(Halfspace(), classes=2)
    model = smoothed(plain, Smoothing(number("0.25")))
    with pytest.raises(rk.BadInput, match="smoothed classifiers"):
        SmoothingCertifier()(plain, x, y, threat="l2:0.1")
    with pytest.raises(rk.BadInput, match="another model"):
        SmoothingCertifier(sigma=number("0.5"))(model, x, y, threat="l2:0.1")
    with pytest.raises(rk.BadInput, match="certifies l2"):
        SmoothingCertifier()(model, x, y, threat="l1:0.1")
    with pytest.raises(rk.BadInput, match="linf"):
        SmoothingCertifier()(model, x, y, threat="linf:0.1")
    with pytest.raises(rk.BadInput):
        rk.certify("smooth:(zoo:digits-ibp),sigma=0.25", "digits:n=5", "l2:0.1", method="ibp")


@pytest.mark.parametrize(
    ("text", "inner"),
    [("(zoo:a),sigma=0.25", "zoo:a"), ("zoo:a,sigma=0.25", "zoo:a"), ("(torchvision:r,classes=10),sigma=1/2", "torchvision:r,classes=10")],
)
def test_specifications(text: str, inner: str) -> None:
    assert smooth_options(text)[0] == inner


@pytest.mark.parametrize("text", ["(zoo:a),noise=gaussian", "(zoo:a", "(zoo:a),sigma=-1", "(zoo:a),sigma=0.1,noise=pink"])
def test_malformed_specifications(text: str) -> None:
    with pytest.raises(rk.BadInput):
        smooth_options(text)

"""Smoothed classifiers that answer by their mean score: prediction, abstention, certificate and attack of one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

import robustkit as rk
from robustkit import streams
from robustkit.attacks.losses import LOSSES
from robustkit.certify.pixeldp import PixelDP
from robustkit.certify.renyi import Renyi
from robustkit.certify.smoothing import SmoothingCertifier
from robustkit.classifier import Classifier
from robustkit.methods import Rows
from robustkit.models.smoothed import BLOCK, Smoothing, smooth_options, smoothed
from robustkit.spec import number
from robustkit.surface import Surface, picked, pooled
from robustkit.threats import load_threat
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge
from robustkit.views import GradientView


class Slope(nn.Module):
    """Scores of class 1 rise with the first pixel: softmax gives sigmoid(steep x (pixel - 1/2))."""

    def __init__(self, steep: float) -> None:
        super().__init__()
        self.steep = steep

    def forward(self, x: Tensor) -> Tensor:
        value = self.steep * (x.flatten(1)[:, 0] - 0.5) / 2
        return torch.stack([-value, value], 1)


class Lopsided(nn.Module):
    """Hardly class 1 on the larger side, surely class 0 on the other: the vote says 1, the mean 0."""

    def forward(self, x: Tensor) -> Tensor:
        above = x.flatten(1)[:, 0] > 0.35
        return torch.stack([torch.zeros(len(x)), torch.where(above, 0.2, -9.0)], 1)


def images(values: list[float]) -> Tensor:
    x = torch.full((len(values), 1, 2, 2), 0.3)
    x[:, 0, 0, 0] = torch.tensor(values)
    return x


def made(network: nn.Module, aggregate: str, sigma: str = "0.25", **options: Any) -> Classifier:
    return smoothed(Classifier(network, classes=2), Smoothing(number(sigma), aggregate=aggregate, **options))  # type: ignore[arg-type]


def mean_score(value: float, steep: float, sigma: float) -> float:
    """E sigmoid(steep (value + sigma eta - 1/2)) by quadrature."""
    at, weight = np.polynomial.hermite_e.hermegauss(199)
    return float((weight / np.sqrt(2 * np.pi) / (1 + np.exp(-steep * (value + sigma * at - 0.5)))).sum())


def test_sums_and_counts_both_estimate_the_mean_score() -> None:
    values, n = [0.2, 0.5, 0.62, 0.9], 64_000
    module: Any = made(Slope(4.0), "mean").module
    keys = streams.row_keys(0, "means", torch.arange(4))
    sums, squares = module.sums(images(values), keys, 0, n)
    truth = np.array([mean_score(v, 4.0, 0.25) for v in values])
    assert np.allclose(sums.sum(1), n)
    assert np.allclose(sums[:, 1] / n, truth, atol=0.005)
    counted = module.counts(images(values), keys, 0, n)
    assert counted.sum(1).tolist() == [n] * 4
    assert np.allclose(counted[:, 1] / n, truth, atol=4 * 0.5 / np.sqrt(n))
    hard = norm.cdf((np.array(values) - 0.5) / 0.25)
    assert float(np.abs(truth - hard).max()) > 0.1, "and the vote's probabilities are others"
    assert bool((squares < sums).all())
    assert np.all(squares[:, 1].numpy() / n > 0.99 * truth**2)


def test_sums_depend_on_neither_batch_nor_the_order_of_draws() -> None:
    module: Any = made(Slope(4.0), "mean").module
    x, keys = images([0.1, 0.4, 0.55, 0.9]), streams.row_keys(1, "draws", torch.arange(4))
    whole = module.sums(x, keys, 0, 300)
    for i in range(4):
        assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(module.sums(x[i : i + 1], keys[i : i + 1], 0, 300), whole))
    parts = [module.sums(x, keys, a, b) for a, b in ((0, 10), (10, BLOCK + 1), (BLOCK + 1, 300))]
    for part, one in zip((sum(p[0] for p in parts), sum(p[1] for p in parts)), whole):
        torch.testing.assert_close(part, one, rtol=1e-12, atol=1e-12)


def test_vote_and_mean_are_two_models_and_everything_follows_the_one_named() -> None:
    """Where they disagree: prediction, certificate and attack are those of the aggregate in the name."""
    x, one, zero = images([0.5]), torch.tensor([1]), torch.tensor([0])
    for aggregate, label, other in (("vote", one, zero), ("mean", zero, one)):
        model = made(Lopsided(), aggregate)
        judge = Judge(model, rk.L2("0.05"), Goal())
        logits = judge.logits(x)
        assert logits.argmax(1).tolist() == label.tolist()
        assert bool(judge.correct(x, label, logits))
        assert not bool(judge.correct(x, other, logits))
        for certifier in (SmoothingCertifier(n=4000), Renyi(n=4000), PixelDP(n=20_000)):
            assert float(certifier(model, x, label, threat="l2:0.01", radius=True).radius[0]) > 0, certifier.name
            assert float(certifier(model, x, other, threat="l2:0.01", radius=True).radius[0]) == -np.inf


def test_it_abstains_where_the_draws_cannot_tell() -> None:
    model = made(Slope(4.0), "mean", votes=1000)
    judge, x = Judge(model, rk.L2("0.1"), Goal()), images([0.505, 0.8, 0.2])
    y = torch.tensor([1, 1, 1])
    assert judge.correct(x, y, judge.logits(x)).tolist() == [False, True, False]


PAIRS = [(SmoothingCertifier, noise) for noise in ("gaussian", "uniform", "laplace")] + [(PixelDP, "gaussian"), (Renyi, "gaussian")]


@pytest.mark.parametrize(("certifier", "noise"), PAIRS)
def test_certified_radii_of_means_stay_below_the_true_ones(certifier: Any, noise: str) -> None:
    """By symmetry the mean score crosses 1/2 where the pixel does: its distance is the true radius."""
    values = [0.5 + 0.04 * i for i in range(1, 13)]
    x, y = images(values), torch.ones(12, dtype=torch.int64)
    for steep, share in ((40.0, 0.25), (8.0, 0.1)):
        model = made(Slope(steep), "mean", noise=noise)
        found = certifier(n=4000)(model, x, y, threat="l2:0.1" if noise == "gaussian" else "l1:0.1", radius=True).radius
        distance = torch.tensor(values, dtype=torch.float64) - 0.5
        assert bool((found <= distance).all())
        if certifier is SmoothingCertifier:
            assert int((found > share * distance).sum()) >= 6, "and are not much below them"


def test_a_certificate_of_the_other_aggregate_is_refused() -> None:
    x, y = images([0.9]), torch.ones(1, dtype=torch.int64)
    for certifier in (SmoothingCertifier, PixelDP, Renyi):
        for mine, theirs in (("vote", "mean"), ("mean", "vote")):
            with pytest.raises(rk.BadInput, match=f"aggregate={mine} says nothing about a model that answers by {theirs}"):
                certifier(aggregate=mine)(made(Slope(4.0), theirs), x, y, threat="l2:0.1")
            certifier(aggregate=mine, n=200)(made(Slope(4.0), mine), x, y, threat="l2:0.1")
    with pytest.raises(rk.BadInput, match="unknown aggregate 'median'"):
        SmoothingCertifier(aggregate="median")
    with pytest.raises(rk.BadInput, match="median: expected one of vote, mean"):
        smooth_options("(zoo:a),sigma=0.25,aggregate=median")
    assert smooth_options("(zoo:a),sigma=0.25,aggregate=mean")[1].aggregate == "mean"


def rows_of(x: Tensor, y: Tensor) -> Rows:
    none = torch.full_like(y, -1)
    eps = torch.full(y.shape, 0.5, dtype=torch.float64)
    return Rows(
        torch.arange(len(y)), 0 * none, x, y, none, eps, streams.row_keys(3, "rows", torch.arange(len(y))), 0 * none, torch.ones(len(y))
    )


@pytest.mark.parametrize("aggregate", ["vote", "mean"])
def test_attacks_climb_the_loss_of_the_mean_score(aggregate: str) -> None:
    """SmoothAdv's objective: -log of the mean softmax score over the draws, not the mean of their losses."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)).double().float()
    model = smoothed(Classifier(network, classes=3), Smoothing(number("0.5"), draws=7, aggregate=aggregate))  # type: ignore[arg-type]
    x, y = torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    view = GradientView(Judge(model, load_threat("l2:0.5"), Goal()), keep="best")
    view.rows = rows_of(x, y)
    view.book = view.open(view.rows)
    keys = view._keys(7)
    gradient, values = view.gradient(torch.zeros_like(x), LOSSES["ce"])
    assert view.book["queries"].tolist() == [7] * 5
    leaf = x.clone().requires_grad_()
    module: Any = model.module
    scores = module(leaf.repeat_interleave(7, 0), keys).softmax(1).view(5, 7, 3).mean(1)
    wanted = -scores.gather(1, y[:, None]).log()[:, 0]
    torch.testing.assert_close(values, wanted.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.sum(), leaf)[0], atol=1e-5, rtol=1e-4)


def test_classes_are_drawn_by_their_scores() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0]]).expand(60_000, 3)
    share = torch.bincount(picked(logits, torch.rand(60_000, generator=torch.Generator().manual_seed(0))), minlength=3) / 60_000
    torch.testing.assert_close(share, logits[0].softmax(0), atol=0.01, rtol=0)
    edge = picked(torch.tensor([[-200.0, 0.0, -200.0]] * 2), torch.tensor([0.0, 1 - 2.0**-24]))
    assert edge.tolist() == [1, 1]
    torch.testing.assert_close(pooled(logits[:6], 3).exp(), logits[:2].softmax(1))


def test_any_random_model_can_answer_by_its_mean() -> None:
    class Jitter(nn.Module):
        adaptive_surface = Surface(random="mean", votes=1500)

        def forward(self, x: Tensor) -> Tensor:
            above = torch.rand(len(x)) < 0.6
            return torch.stack([torch.zeros(len(x)), torch.where(above, 0.2, -9.0)], 1)

    model = Classifier(Jitter(), classes=2)
    shares = model.tally(images([0.5, 0.1]), torch.tensor([5, 6]))
    assert bool(((shares[:, 1] - 0.6 * 0.55).abs() < 0.06).all())
    assert str(model.surface) == "random, mean of 1500"


def test_no_attack_contradicts_the_certificates_of_a_mean(tmp_path: Path) -> None:
    options: dict[str, Any] = {"attacks": ["pgd:steps=10"], "certifiers": ["pixeldp:n=2000", "smoothing:n=1000"], "report": False}
    spec = "smooth:(zoo:digits-standard),sigma=0.25,votes=200,aggregate=mean"
    run = rk.evaluate(spec, "digits:n=24", "l2:0.5", out=tmp_path / "run", **options)
    held = np.load(run.folder / "samples.npz")
    assert "aggregate=mean" in run.summary()["model"]["spec"]
    assert int((held["upper"] <= 0.5).sum()) > 2, "the attack breaks some"
    assert int((held["lower_statistical"] >= held["upper"]).sum()) == 0


def test_the_shorthand_names_the_aggregate(tmp_path: Path) -> None:
    method = "pixeldp:sigma=0.5,n=500,aggregate=mean"
    run = rk.certify("zoo:digits-standard", "digits:n=10", "l2:0.05", method=method, out=tmp_path / "run", report=False)
    assert run.summary()["model"]["spec"].endswith("sigma=1/2,noise=gaussian,votes=1000,draws=10,aggregate=mean")

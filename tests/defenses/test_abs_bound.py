"""The bound of analysis by synthesis against closed forms, attacks and random changes."""

from __future__ import annotations

import math

import pytest
import torch
from small_synthesis import centres, images, lively, still

from robustkit import streams
from robustkit.attacks import Envelope
from robustkit.certify import SynthesisBound
from robustkit.classifier import Classifier
from robustkit.evaluation.certify_images import certify_images
from robustkit.models.synthesis import synthesis_of
from robustkit.threats import load_threat


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

"""A certifier run over images held in memory; what counts as proven is decided in verdict/proof.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustkit.batch_size import BatchSize, batch_rows, check_batch
from robustkit.classifier import Classifier, as_classifier, pick_device
from robustkit.core.comparisons import float_below
from robustkit.data import check_images
from robustkit.errors import BadInput
from robustkit.methods import Bound, Certificate, Certifier, StatisticalCertifier
from robustkit.models.asking import refuse
from robustkit.threats import Threat, load_threat
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge
from robustkit.verdict.proof import largest_radius, prove


def certify_images(
    certifier: Certifier,
    model: Any,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat | str,
    batch_size: BatchSize = "auto",
    device: str | torch.device = "auto",
    radius: bool = False,
) -> Certificate:
    """Certify images held in memory; see Certifier.__call__.

    Args:
        model: a Classifier, an nn.Module or a defense; images x (N,C,H,W) in [0,1], labels y (N,).
        radius: search each sample's largest radius instead of trying the threat's budget.
    Returns:
        the Certificate: radius (N,) float64 (the budget, rounded down, where proven), -inf elsewhere and
        for every sample that the model gets wrong, ties and NaN included. Raises BadInput.
    """
    x, labelled = check_images(x, y)
    if labelled is None:
        raise BadInput("certification needs labels: expected y (N,), one class number per image")
    check_batch(batch_size)
    threat = load_threat(threat)
    certifier.accepts(threat)
    classifier = model if isinstance(model, Classifier) else as_classifier(model, device=pick_device(device))
    classifier.check(x[:1], labelled)
    refuse(classifier, x)
    judge = Judge(classifier, threat, Goal("untargeted"))
    sampled = certifier.sample(classifier, threat, 0) if isinstance(certifier, StatisticalCertifier) else None
    bound: Bound = certifier.bind(classifier, threat) if sampled is None else lambda x, y, eps: eps
    shape = tuple(x.shape[1:])
    step = batch_rows(batch_size, shape, classifier.device)
    radii, margins = torch.full((len(x),), -torch.inf, dtype=torch.float64), torch.full((len(x),), -torch.inf, dtype=torch.float64)
    for start in range(0, len(x), step):
        rows, labels = (part[start : start + step].to(classifier.device) for part in (x, labelled))
        logits = judge.logits(rows)
        correct = judge.correct(rows, labels, logits).nonzero()[:, 0]
        if not len(correct):
            continue
        rows, labels, scale = rows[correct], labels[correct], logits[correct].abs().amax(1)
        eps = torch.full(labels.shape, float_below(threat.eps), dtype=torch.float64, device=classifier.device)
        if sampled:
            found, margin, *_ = sampled(correct + start, rows, labels, None if radius else eps, lambda: None)
        elif radius:
            high = torch.full_like(eps, float_below(threat.unbounded(shape)))
            found, margin = largest_radius(bound, rows, labels, torch.zeros_like(eps), high, rounds=16, scale=scale)
        else:
            proven, margin = prove(bound, rows, labels, eps, scale=scale)
            found = torch.where(proven, eps, -torch.inf)
        where = correct.cpu() + start
        radii[where], margins[where] = found.cpu(), margin.cpu()
    dtype = certifier.dtype or str(x.dtype).removeprefix("torch.")
    return Certificate(radii.to(x.device), certifier.guarantee, margins.to(x.device), dtype)

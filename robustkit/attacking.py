"""Runs one attack on images held in memory, without an engine or a run folder."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from robustkit.batch_size import BatchSize, batch_rows, check_batch
from robustkit.classifier import Classifier, as_classifier, pick_device
from robustkit.core.comparisons import float_below
from robustkit.data import Data, as_data, check_images
from robustkit.driver import Stop
from robustkit.errors import BadInput, unknown
from robustkit.methods import Attack, Result
from robustkit.samples import Outcome, Samples
from robustkit.sharing import Processes, Sharing, make_driver
from robustkit.threats import Threat, load_threat
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge


def attack_images(
    attack: Attack,
    model: Any,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat | str,
    seed: int = 0,
    index: Tensor | None = None,
    goal: str = "untargeted",
    stop: Stop = "first",
    batch_size: BatchSize = "auto",
    processes: Processes = "auto",
    device: str | torch.device = "auto",
    pool: Data | tuple[Tensor, Tensor] | None = None,
) -> Result:
    """Run one attack on images held in memory; see Attack.__call__."""
    check_batch(batch_size)
    sharing = Sharing.asked(processes)
    if stop not in get_args(Stop):
        raise unknown("stop", str(stop), get_args(Stop))
    x, labels = check_images(x, y)
    if labels is None:
        raise BadInput("an attack needs labels: expected y (N,), one class number per image")
    classifier = model if isinstance(model, Classifier) else as_classifier(model, device=pick_device(device))
    threat = load_threat(threat)
    judge = Judge(classifier, threat, Goal(goal))
    count = len(x)
    y, index = labels.cpu(), torch.arange(count) if index is None else index.cpu().long()
    step = batch_rows(batch_size, tuple(x.shape[1:]), classifier.device)
    classifier.check(x[:1], y)
    logits = torch.cat([judge.logits(x[i : i + step]).cpu() for i in range(0, count, step)])
    target = judge.goal.targets(y, index, logits.shape[1], seed)
    correct = judge.correct(x, y.to(x.device), logits.to(x.device)).cpu()
    at = correct.nonzero()[:, 0]
    eps = torch.full((count,), float_below(threat.eps), dtype=torch.float64)
    samples = Samples(index, y, target, logits, eps, lambda where: x[where.to(x.device)]).pick(at)
    found: list[Outcome] = []

    def others() -> Data:
        return pool if isinstance(pool, Data) else as_data(*(pool or (x, labels)))

    options = {"seed": seed, "stop": stop, "batch_size": batch_size, "pool": others}
    make_driver(attack, judge, sharing=sharing, **options).run(samples, found.append)

    adversarial, size = x.clone(), torch.where(correct, torch.inf, 0.0).double()
    success = torch.zeros(count, dtype=torch.bool)
    queries, gradients = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
    parameters = threat.zero(x).cpu()
    if found:
        all_found = Outcome.join(found)
        where = at[all_found.at]
        success[where], size[where] = all_found.success, all_found.size
        queries[where], gradients[where] = all_found.queries, all_found.gradients
        shown = all_found.success | (stop == "never")
        parameters[where[shown]] = all_found.parameters[shown]
        adversarial[where[shown].to(x.device)] = threat.apply(x[where[shown].to(x.device)], all_found.parameters[shown].to(x.device))
    return Result(adversarial, *(part.to(x.device) for part in (success, size, queries, gradients, parameters)))

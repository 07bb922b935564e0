"""What the Driver counts, against an independent count."""

from __future__ import annotations

import pytest
import torch
from counting import counted, expected_counts

from robustkit.attacks.apgd import APGD
from robustkit.attacks.fgsm import FGSM
from robustkit.attacks.pgd import PGD
from robustkit.classifier import Classifier
from robustkit.driver import Driver
from robustkit.methods import Attack
from robustkit.samples import Outcome, Samples
from robustkit.threats import Linf
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge


@pytest.mark.parametrize("batch_size", [1, 48, 256])
@pytest.mark.parametrize(
    ("attack", "iterations"),
    [(PGD(steps=5, restarts=3), 5), (FGSM(), 1), (APGD(steps=7, restarts=2), 7), (APGD("dlr-targeted", steps=4, restarts=1), 4)],
    ids=lambda v: getattr(v, "name", ""),
)
def test_queries_and_gradients_are_counted_exactly(attack: Attack, iterations: int, batch_size: int, in_turn: None) -> None:
    module, x, y = counted()
    model = Classifier(module)
    judge = Judge(model, Linf("0.004"), Goal())
    logits = judge.logits(x)
    module.log.clear()
    model.forwards = model.backwards = 0
    found: list[Outcome] = []
    work = Samples(torch.arange(90), y, torch.full((90,), -1), logits, torch.full((90,), 0.004, dtype=torch.float64), lambda at: x[at])
    Driver(attack, judge, batch_size=batch_size).run(work, found.append)
    outcome = Outcome.join(found)
    outcome = outcome.pick(outcome.at.argsort())
    assert outcome.at.tolist() == list(range(90))
    assert 5 < int(outcome.success.sum()) < 85
    queries, gradients, _ = expected_counts(module.log, 90, iterations)
    assert outcome.queries.tolist() == queries
    assert outcome.gradients.tolist() == gradients
    assert model.forwards == sum(len(call.tags) for call in module.log)
    assert model.backwards == sum(len(call.tags) for call in module.log if call.with_gradient)


def test_queries_without_stopping_include_the_second_confirmation() -> None:
    module, x, y = counted()
    result = PGD(steps=4, restarts=2, step_size=None)(module, x, y, threat=Linf("0.004"), stop="never", batch_size=32)
    calls = module.log[1 + -(-90 // 32) :]  # after the model's check and the clean pass
    queries, gradients, _ = expected_counts(calls, 90, 4, never=True)
    assert result.queries.tolist() == queries
    assert result.gradients.tolist() == gradients == [8] * 90
    assert min(queries) >= 10


def test_a_settled_sample_is_not_worked_on() -> None:
    module, x, y = counted()
    result = PGD(steps=6, restarts=4)(module, x, y, threat=Linf("0.004"), batch_size=16)
    _, _, forwards = expected_counts(module.log[1 + -(-90 // 16) :], 90, 6)
    held = ~result.success
    assert result.queries[held].tolist() == [4 * 7] * int(held.sum())
    wasted = sum(forwards) - int(result.queries.sum())
    assert wasted <= 0.25 * sum(forwards)  # rows that linger until 16 can leave together
    assert bool((result.queries[result.success] < 4 * 7 + 1).all())

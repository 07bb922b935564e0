"""The first hit, restarts, and which of a sample's attempts is returned."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from counting import Counting, counted
from small_driven import network, same, samples
from torch import Tensor

from robustkit import registry
from robustkit.attacks.apgd import APGD
from robustkit.attacks.bim import BIM
from robustkit.attacks.fgsm import FGSM
from robustkit.attacks.losses import cross_entropy
from robustkit.attacks.pgd import PGD
from robustkit.attacks.square import Square
from robustkit.classifier import Classifier
from robustkit.driver import Driver
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.samples import Outcome, Samples
from robustkit.search.loss_scale import loss_scale
from robustkit.threats import Linf, Threat
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge


@pytest.mark.parametrize("stop", ["first", "never"])
@pytest.mark.parametrize("count", [1, 5, 37])
@pytest.mark.parametrize(
    "attack", [PGD(steps=5, restarts=7), APGD("dlr-targeted", steps=4, restarts=2), Square(queries=9, restarts=5)], ids=lambda a: a.name
)
def test_trying_attempts_ahead_of_their_turn_changes_nothing(
    attack: Attack, count: int, stop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x, y = counted()
    ahead = attack(module, x[:count], y[:count], threat=Linf("0.004"), stop=stop)
    rows = sum(len(call.tags) for call in module.log)
    monkeypatch.setattr(Driver, "_try_ahead", lambda *_: False)
    module.log.clear()
    same(ahead, attack(module, x[:count], y[:count], threat=Linf("0.004"), stop=stop))
    assert count > 16 or rows <= sum(len(call.tags) for call in module.log)


def test_the_first_hit_is_returned(in_turn: None) -> None:
    """Every queried point of a sample is logged; the result is the first of them that was an error."""
    seen: dict[int, list[Tensor]] = {}

    class Watch(Counting):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            for i, tag in enumerate(self.log[-1].tags):
                if self.log[-1].errors[i] and self.log[-1].with_gradient:
                    seen.setdefault(tag, []).append(x[i].detach().clone())
            return logits

    _, x, y = counted()
    module = Watch(torch.zeros(100, dtype=torch.int64))
    module.labels[:90] = y
    result = PGD(steps=8, restarts=2)(module, x, y, threat=Linf("0.004"))
    found = [i for i in range(90) if bool(result.success[i]) and i in seen]
    assert len(found) > 5
    for i in found:
        assert torch.equal(result.adversarial[i], seen[i][0])


class Recording(PGD):
    """PGD that notes which (sample, attempt) pairs are begun."""

    name = "recording"
    begun: list[tuple[int, int]] = []

    def init(self, rows: Rows, view: Any, threat: Threat) -> State:
        assert len(rows) % 16 == 0
        self.begun.extend(dict.fromkeys(zip(rows.index.tolist(), rows.attempt.tolist())))
        return super().init(rows, view, threat)


def test_restarts_only_on_survivors() -> None:
    x, y = samples()
    attack = Recording(steps=4, restarts=3)
    attack.begun.clear()
    clean = Classifier(network()).logits(x).argmax(1) == y
    result = attack(network(), x, y, threat=Linf("0.02"), batch_size=32)
    begun = Counter(attack.begun)
    assert max(begun.values()) == 1
    per_sample = Counter(index for index, _ in attack.begun)
    for i in range(90):
        if not clean[i]:
            assert per_sample[i] == 0
        elif not result.success[i]:
            assert per_sample[i] == 3
        else:  # the attempts before the last cost five queries each, the last at most as many
            assert (per_sample[i] - 1) * 5 < int(result.queries[i]) <= per_sample[i] * 5
    assert int(result.success.sum()) > 20


def test_without_stopping_the_highest_loss_of_all_attempts_is_returned() -> None:
    """Against single restarts by hand: the winner is verified first, then of the highest loss."""
    x, y = samples(48)
    model = Classifier(network())
    attack = PGD(steps=3, restarts=3)
    losses: dict[int, list[tuple[bool, float]]] = {}

    class Noted(Driver):
        def _verdict(self, rows: Rows, book: State) -> Any:
            verdict = super()._verdict(rows, book)
            p, verified, *_ = verdict
            logits = judge.logits(threat.apply(rows.x, p)) * rows.scale[:, None]
            for i, index in enumerate(rows.index.tolist()):
                value = cross_entropy(logits[i : i + 1], rows.y[i : i + 1], rows.target[i : i + 1])
                losses.setdefault(index, []).append((bool(verified[i]), float(value)))
            return verdict

    threat = Linf("0.02")
    judge = Judge(model, threat, Goal())
    logits = judge.logits(x)
    at = judge.correct(x, y, logits).nonzero()[:, 0]
    eps = torch.full((48,), 0.02, dtype=torch.float64)
    work = Samples(torch.arange(48), y, torch.full((48,), -1), logits, eps, lambda where: x[where]).pick(at)
    found: list[Outcome] = []
    Noted(attack, judge, stop="never", batch_size=16).run(work, found.append)
    outcome = Outcome.join(found)
    assert sorted(outcome.at.tolist()) == list(range(len(at)))
    after = judge.logits(threat.apply(x[at[outcome.at]], outcome.parameters))
    after = after * loss_scale(logits[at[outcome.at]])[:, None]
    values = cross_entropy(after, y[at[outcome.at]], torch.full((len(at),), -1))
    for i, index in enumerate(at[outcome.at].tolist()):
        assert len(losses[index]) == 3
        best = max(losses[index])
        assert bool(outcome.success[i]) == best[0]
        assert float(values[i]) == pytest.approx(best[1], rel=1e-5)


def test_without_stopping_the_loss_is_no_lower_than_at_the_last_point() -> None:
    x, y = samples(48)
    model = Classifier(network())
    aim = torch.full((48,), -1)
    far = PGD(steps=5, step_size=None, random_start=False)
    best = far(model, x, y, threat=Linf("0.05"), stop="never")
    last = BIM(steps=5)(model, x, y, threat=Linf("0.05"), stop="never")
    assert torch.equal(best.parameters, last.parameters)
    one = FGSM()(model, x, y, threat=Linf("0.05"), stop="never")
    clean = model.logits(x).argmax(1) == y
    scale = loss_scale(model.logits(x))[:, None]
    grown = cross_entropy(model.logits(one.adversarial) * scale, y, aim) - cross_entropy(model.logits(x) * scale, y, aim)
    assert bool((grown[clean] >= -1e-5).all())


def test_attacks_that_look_beyond_the_budget_cannot_run_on() -> None:
    x, y = samples(4)
    with pytest.raises(BadInput, match="stop='never'"):
        registry.make("attack", "fab:steps=2")(network(), x, y, threat=Linf("0.1"), stop="never")

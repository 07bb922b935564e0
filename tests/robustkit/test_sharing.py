"""An attack shared among processes: the same results, whatever becomes of them, and only where nobody could miss anything."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_driven import network, same, samples
from torch import Tensor, nn

from robustkit import evaluate, registry, sharing
from robustkit.attacks.pgd import PGD
from robustkit.blocks import BlockAttack
from robustkit.classifier import Classifier
from robustkit.driver import Driver
from robustkit.errors import BadInput, OutOfTime
from robustkit.methods import Attack, Rows, State
from robustkit.models import load_model
from robustkit.samples import Outcome, Samples
from robustkit.sharing import Sharing, make_driver
from robustkit.threats import Threat, load_threat
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge
from robustkit.watch import Watch

pytestmark = pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="processes share a CPU, on Linux")

MANY = Sharing(3, always=True)


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "pgd": ("pgd:steps=6,restarts=2", "linf:0.02", {}),
    "pgd-never": ("pgd:steps=4,restarts=2", "l2:0.1", {"stop": "never"}),
    "apgd-targets": ("apgd:dlr-targeted,steps=6,restarts=1", "linf:0.02", {}),
    "fab": ("fab:4", "l2:0.1", {}),
    "square": ("square:30", "linf:0.02", {}),
    "square-targeted": ("square:30", "l2:0.2", {"goal": "targeted:next"}),
    "nes": ("nes:queries=200,samples=10", "linf:0.05", {}),
    "boundary": ("boundary:60", "l2:0.2", {}),
    "universal": ("universal:epochs=2", "linf:0.1", {}),
    "rotation": ("rotation:angles=3,shifts=3", "rotation:30", {}),
    "foolbox": ("foolbox:deepfool", "l2:0.2", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_results_do_not_depend_on_the_number_of_processes(case: str) -> None:
    spec, threat, options = CASES[case]
    attack, (x, y) = registry.make("attack", spec), samples()
    one, three = Classifier(network()), Classifier(network())
    alone = attack(one, x, y, threat=threat, pool=(x, y), processes=1, **options)
    shared = attack(three, x, y, threat=threat, pool=(x, y), processes=3, **options)
    same(alone, shared)
    assert 0 < int(alone.success.sum()) < len(x), "all fall or none, and little was tested"
    assert (three.backwards > 0) == (one.backwards > 0)
    assert three.forwards > int(alone.queries.max()), "what the processes sent forward is counted here"


def test_a_whole_run_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    one, two = (
        evaluate("zoo:digits-standard", "digits:n=70", "linf:0.1", suite="quick", curve=True, out=tmp_path / str(count), processes=count)
        for count in (1, 2)
    )
    columns = one.evidence.columns()
    for name, column in two.evidence.columns().items():
        assert np.array_equal(column, columns[name], equal_nan=column.dtype.kind == "f"), name
    costs = [[(row["name"], row["queries"], row["settled"]) for row in run.summary()["stages"]] for run in (one, two)]
    assert costs[0] == costs[1]
    assert any(queries for _, queries, _ in costs[0])


class Bench:
    """A judge of the small network, and samples of it."""

    def __init__(self, threat: str = "linf:0.02") -> None:
        self.x, self.y = samples()
        self.judge = Judge(Classifier(network()), load_threat(threat), Goal("untargeted"))
        logits, count = self.judge.logits(self.x), len(self.x)
        eps = torch.full((count,), float(self.judge.threat.eps), dtype=torch.float64)
        none = torch.full((count,), -1)
        self.samples = Samples(torch.arange(count), logits.argmax(1), none, logits, eps, lambda at: self.x[at])

    def run(self, attack: Attack, shared: Sharing, **options: Any) -> tuple[Outcome, list[Outcome]]:
        """All outcomes in the order of the samples, and in the groups in which they came."""
        found: list[Outcome] = []
        make_driver(attack, self.judge, sharing=shared, **options).run(self.samples, found.append)
        joined = Outcome.join(found)
        return joined.pick(joined.at.argsort()), found


def equal(one: Outcome, other: Outcome) -> None:
    for name, value in vars(one).items():
        assert torch.equal(value, getattr(other, name)), name


HERE = os.getpid()


@dataclass(frozen=True)
class Fragile(PGD):
    """Kills the second of the processes it works in, in its fourth step."""

    def step(self, rows: Rows, state: State, view: Any, threat: Threat) -> State:
        if os.getpid() != HERE and bool((rows.index % 3 == 1).any()) and int(rows.steps.max()) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(rows, state, view, threat)


def test_the_samples_of_a_lost_process_are_attacked_here() -> None:
    attack = Fragile(steps=6, restarts=2)
    shared, groups = Bench().run(attack, MANY)
    alone, _ = Bench().run(attack, Sharing())
    equal(alone, shared)
    assert sorted(torch.cat([group.at for group in groups]).tolist()) == list(range(90)), "each is delivered once"


@dataclass(frozen=True)
class Refusing(PGD):
    def step(self, rows: Rows, state: State, view: Any, threat: Threat) -> State:
        if int(rows.steps.max()) == 2:
            raise BadInput("no third step: take two")
        return super().step(rows, state, view, threat)


def test_what_an_attack_raises_there_is_raised_here() -> None:
    with pytest.raises(BadInput, match=r"^no third step: take two$"):
        Bench().run(Refusing(steps=6), MANY)


@dataclass(frozen=True)
class Stumbling(BlockAttack):
    """Fails on every fourth image."""

    name = "stumbling"

    @property
    def iterations(self) -> int:
        return 1

    def search(self, rows: Rows, watch: Watch, threat: Threat) -> Tensor:
        if int(rows.index[0]) % 4 == 2:
            raise ValueError("not this one")
        watch(rows.x)
        return rows.x


def test_failures_are_told_once_for_all_processes() -> None:
    with pytest.warns(RuntimeWarning) as heard:
        Bench().run(Stumbling(), MANY)
    messages = [str(one.message) for one in heard if one.category is RuntimeWarning]
    assert len(messages) == 1
    assert "raised on 22 of 90 samples" in messages[0] and "dataset index 2: ValueError: not this one" in messages[0]


def test_a_time_limit_keeps_what_was_delivered() -> None:
    bench, found, finished = Bench(), [], []

    def tick(more: int) -> None:
        finished.append(more)
        if sum(finished) > 20:
            raise OutOfTime("over")

    driver = make_driver(PGD(steps=200, restarts=20), bench.judge, sharing=MANY, tick=tick)
    with pytest.raises(OutOfTime):
        driver.run(bench.samples, found.append)
    assert sum(len(group.at) for group in found) == sum(finished) > 20


# ---- where attacks are shared without being asked


class Own(nn.Module):
    """A user's own way of putting layers together."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.depth = inner, 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y


class Leaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.sizes = torch.zeros(1), (8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean


def hooked() -> nn.Module:
    made = network()
    made.register_forward_hook(lambda *_: None)
    return made


def patched() -> Classifier:
    made = Classifier(network())
    made.search = made.forward  # type: ignore[method-assign]
    return made


class Session(nn.Module):
    """Holds something that may not survive in another process."""

    def __init__(self) -> None:
        super().__init__()
        self.session = object()

    def forward(self, x: Tensor) -> Tensor:
        return x


MODELS: dict[str, tuple[Callable[[], Classifier], bool, bool]] = {
    "layers of torch": (lambda: Classifier(network()), True, True),
    "bundled": (lambda: load_model("zoo:digits-standard"), True, True),
    "a function": (lambda: Classifier(lambda x: x.flatten(1)[:, :5]), False, False),
    "hooked": (lambda: Classifier(hooked()), False, False),
    "patched": (patched, False, False),
    "own layers handed over": (lambda: Classifier(nn.Sequential(Leaf(), Own(network()))), False, True),
    "own layers by name": (lambda: Classifier(nn.Sequential(Leaf(), Own(network())), spec="mine:make"), True, True),
    "a door to something else": (lambda: Classifier(nn.Sequential(Session(), network()), spec="mine:make"), False, False),
}


@pytest.mark.parametrize("case", MODELS)
def test_only_models_that_cannot_miss_it_are_shared(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, heard, unheard = MODELS[case]
    monkeypatch.setattr(sharing, "_WORTH", 0.0)
    classifier, bench = make(), Bench()
    judge = Judge(classifier, bench.judge.threat, bench.judge.goal)
    before = classifier.forwards
    assert (Sharing(2).processes(Driver(PGD(), judge), bench.samples) > 1) is heard
    assert (Sharing(2, unheard=True).processes(Driver(PGD(), judge), bench.samples) > 1) is unheard
    assert classifier.forwards == before


def test_attacks_are_shared_where_they_are_ours_long_and_many(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    def shares(most: int, attack: Attack, count: int = 90, **options: bool) -> int:
        driver = make_driver(attack, bench.judge).driver
        return Sharing(most, **options).processes(driver, bench.samples.pick(torch.arange(count)))

    assert shares(2, PGD(steps=100_000, restarts=10)) == 2
    assert shares(2, PGD(steps=2)) == 1, "little work"
    monkeypatch.setattr(sharing, "_WORTH", 0.0)
    assert shares(2, PGD(steps=2)) == 2
    assert shares(1, PGD()) == 1
    assert shares(2, PGD(), 16) == 1, "two processes would pad as much as one works on"
    assert shares(2, PGD(), 17) == 2
    assert shares(2, PGD(), 48) == 1, "two processes would pad 24 to 32 each"
    assert shares(32, PGD()) == 1, "few samples for so many threads"
    assert shares(8, PGD()) == 6
    assert shares(2, registry.make("attack", "nes:samples=32"), 2) == 2, "many points a sample"  # type: ignore[arg-type]
    assert shares(2, Stumbling(), 2) == 1 and shares(2, Stumbling(), 2, always=True) == 2
    assert shares(2, Fragile()) == 1, "an attack of somebody's own"
    assert shares(2, Fragile(), always=True) == 2


def test_processes_are_refused_in_words() -> None:
    assert Sharing.asked("auto", unheard=True) == Sharing(torch.get_num_threads(), unheard=True)
    assert Sharing.asked(1) == Sharing() and Sharing.asked(3) == MANY
    for wrong in (0, -2, "many", 1.5):
        with pytest.raises(BadInput, match="expected auto or a whole number of at least 1"):
            Sharing.asked(wrong)  # type: ignore[arg-type]

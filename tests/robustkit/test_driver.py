"""The Driver: the same result however rows are batched, exact counts, no work on settled samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit import registry
from robustkit.attacks.apgd import APGD
from robustkit.attacks.bim import BIM
from robustkit.attacks.fgsm import FGSM
from robustkit.attacks.losses import cross_entropy
from robustkit.attacks.pgd import PGD
from robustkit.attacks.square import Square
from robustkit.batch_size import auto_batch
from robustkit.classifier import Classifier
from robustkit.data import load_data
from robustkit.driver import Driver
from robustkit.errors import BadInput
from robustkit.goals import Goal
from robustkit.judge import Judge
from robustkit.methods import Attack, Result, Rows, State
from robustkit.models import build, load_model
from robustkit.numerics import clear_margin, margins
from robustkit.samples import Outcome, Samples
from robustkit.threats import L2, Linf, Threat

BATCHES = (1, 7, 64, 256)


def network() -> nn.Module:
    """Random weights; the last bias makes all five classes equally likely."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        last = nn.Linear(24, 5)
        made = nn.Sequential(nn.Conv2d(1, 6, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 24), nn.ReLU(), last).eval()
    with torch.no_grad():
        last.bias.sub_(made(torch.rand(500, 1, 8, 8, generator=torch.Generator().manual_seed(9))).mean(0))
    return made


def samples(count: int = 90) -> tuple[Tensor, Tensor]:
    """Images and labels, most of them those the network gives, so that it is mostly right."""
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = Classifier(network()).logits(x).argmax(1)
    y[::11] = (y[::11] + 1) % 5
    return x, y


def same(one: Result, other: Result) -> None:
    for field in fields(Result):
        assert torch.equal(getattr(one, field.name), getattr(other, field.name)), field.name


CASES: dict[str, tuple[Attack, Threat, dict[str, Any]]] = {
    "pgd": (PGD(steps=6), Linf("0.02"), {}),
    "pgd-restarts": (PGD(steps=4, restarts=3), Linf("0.02"), {}),
    "pgd-l2": (PGD(steps=5, restarts=2, loss="dlr"), L2("0.1"), {}),
    "pgd-never": (PGD(steps=4, restarts=3), Linf("0.02"), {"stop": "never"}),
    "pgd-l2-never": (PGD(steps=4, loss="margin"), L2("0.1"), {"stop": "never"}),
    "pgd-targeted": (PGD(steps=5), Linf("0.1"), {"goal": "targeted:random"}),
    "fgsm": (FGSM(), Linf("0.02"), {}),
    "bim": (BIM(steps=4), Linf("0.02"), {}),
    "apgd": (APGD(steps=12, restarts=2), Linf("0.02"), {}),
    "apgd-targets": (APGD("dlr-targeted", steps=6, restarts=1), Linf("0.02"), {}),
    "apgd-l2-never": (APGD(steps=10, restarts=1), L2("0.1"), {"stop": "never"}),
    "square": (Square(queries=20, restarts=2), Linf("0.02"), {}),
    "square-l2-never": (Square(queries=20), L2("0.2"), {"stop": "never"}),
}


@pytest.mark.parametrize("case", CASES)
def test_results_do_not_depend_on_the_batch_size(case: str) -> None:
    attack, threat, options = CASES[case]
    x, y = samples()
    found = {size: attack(network(), x, y, threat=threat, batch_size=size, **options) for size in (*BATCHES, "auto")}
    for size in (*BATCHES, "auto"):
        same(found["auto"], found[size])
    reference = found["auto"]
    if options.get("stop") != "never" and "goal" not in options:
        assert 10 < int(reference.success.sum()) < 75  # many fall and many hold, or little was tested


SHORT = {
    "adef": ("adef:steps=6", "flow:eps=1"),
    "boundary": ("boundary:queries=80", "l2:0.5"),
    "foolbox": ("foolbox:ddn,steps=6", "l2:0.5"),
    "nes": ("nes:queries=120,samples=10", "linf:0.02"),
    "rotation": ("rotation:angles=5,shifts=3", "rotation:angle=30,shift=3"),
    "stadv": ("stadv:steps=6", "flow:eps=1"),
    "transfer": ("transfer:[digits-standard],steps=4", "linf:0.2"),
}
"""Specification and threat of attacks that the first two defaults do not fit."""


@pytest.mark.parametrize("name", sorted(set(registry.table("attack"))))
def test_every_attack_gives_the_same_in_any_batch(name: str) -> None:
    spec, threat = SHORT.get(name, (name, "linf:0.02"))
    attack = registry.make("attack", spec)
    if name not in SHORT:
        shorter = {key: value for key, value in {"steps": 6, "queries": 15, "restarts": 1}.items() if hasattr(attack, key)}
        attack = type(attack)(**{f.name: getattr(attack, f.name) for f in fields(attack)} | shorter)
    x, y = load_data("digits:n=40") if name == "transfer" else samples(40)
    model = load_model("zoo:digits-pgd") if name == "transfer" else network()
    if name in ("envelope", "latent-descent"):  # for models that reconstruct what they see
        x = load_data("digits:n=24").x
        model = build("abs(10,2,8,starts=20,steps=3)", 0).eval()
        y = model(x).argmax(1)
    one, other = (attack(model, x, y, threat=threat, batch_size=size) for size in (1, 256))
    same(one, other)


def test_with_several_threads_the_batch_size_does_not_matter_either() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 256, 10)).eval()
    x = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    y = Classifier(model).logits(x).argmax(1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        one, other = (PGD(steps=2)(model, x, y, threat=L2("0.1"), batch_size=size) for size in (7, 256))
    finally:
        torch.set_num_threads(threads)
    assert 0 < int(one.success.sum()) < 24
    same(one, other)


def test_a_sample_does_not_depend_on_the_others() -> None:
    x, y = samples(60)
    attack = PGD(steps=5, restarts=2)
    whole = attack(network(), x, y, threat=Linf("0.02"), seed=3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    shuffled = attack(network(), x[order], y[order], threat=Linf("0.02"), seed=3, index=order)
    same(Result(*(getattr(whole, f.name)[order] for f in fields(Result))), shuffled)
    first = attack(network(), x[:20], y[:20], threat=Linf("0.02"), seed=3)
    same(Result(*(getattr(whole, f.name)[:20] for f in fields(Result))), first)
    alone = attack(network(), x[41:42], y[41:42], threat=Linf("0.02"), seed=3, index=torch.tensor([41]))
    same(Result(*(getattr(whole, f.name)[41:42] for f in fields(Result))), alone)


def test_the_seed_and_the_index_matter() -> None:
    x, y = samples(40)
    attack = PGD(steps=1)
    one = attack(network(), x, y, threat=Linf("0.02"), stop="never")
    for changed in ({"seed": 1}, {"index": torch.arange(40) + 1}):
        assert not torch.equal(one.parameters, attack(network(), x, y, threat=Linf("0.02"), stop="never", **changed).parameters)


def test_no_global_generator_is_touched() -> None:
    x, y = samples(20)
    for attack in (PGD(steps=2, restarts=2), APGD(steps=3), Square(queries=4)):
        before = torch.get_rng_state()
        attack(network(), x, y, threat=Linf("0.02"))
        assert torch.equal(torch.get_rng_state(), before)


# ---- what a result says


@pytest.mark.parametrize("case", CASES)
def test_what_a_result_says_of_each_sample(case: str) -> None:
    attack, threat, options = CASES[case]
    x, y = samples()
    model = Classifier(network())
    result = attack(model, x, y, threat=threat, **options)
    clean = model.logits(x).argmax(1) == y
    assert not bool((result.success & ~clean).any())
    assert bool((result.size[~clean] == 0).all())
    assert bool((result.queries[~clean] == 0).all())
    assert torch.equal(torch.isfinite(result.size), result.success | ~clean)
    assert torch.equal(result.adversarial, threat.apply(x, result.parameters))
    assert bool(threat.contains(x, result.parameters).all())
    assert torch.equal(result.size[result.success], threat.size(x, result.parameters)[result.success])
    now = model.logits(result.adversarial).argmax(1)
    if "goal" in options:
        assert bool((now != y)[result.success].all())
    else:
        assert bool((now != y)[result.success].all())
        assert bool((result.queries[clean] > 0).all())
    if options.get("stop") != "never":
        untouched = ~result.success
        assert torch.equal(result.adversarial[untouched], x[untouched])


def test_a_targeted_result_hits_the_target() -> None:
    x, y = samples()
    model = Classifier(network())
    result = PGD(steps=20)(model, x, y, threat=Linf("0.3"), goal="targeted:next")
    assert int(result.success.sum()) > 10
    hit = result.success
    assert torch.equal(model.logits(result.adversarial[hit]).argmax(1), (y[hit] + 1) % 5)


def test_arrays_and_eight_bit_images_are_understood() -> None:
    x, y = samples(20)
    eight = (x * 255).round().to(torch.uint8)
    wanted = PGD(steps=3)(network(), eight.float() / 255, y, threat=Linf("0.02"))
    same(PGD(steps=3)(network(), eight, y, threat="linf:0.02"), wanted)
    arrays: tuple[Any, Any] = (eight.numpy(), y.numpy())
    same(PGD(steps=3)(network(), *arrays, threat=Linf("0.02")), wanted)
    same(PGD(steps=3)(network(), eight.float() / 255, y.to(torch.int32), threat=Linf("0.02")), wanted)


# ---- counting, against an independent count


@dataclass
class Call:
    """One forward of the model: who was in it, and whether the point was adversarial."""

    tags: list[int]
    errors: list[bool]
    with_gradient: bool


class Counting(nn.Module):
    """Logs every forward. The first value of an image names its sample: steps of 0.01, and a budget of 0.004."""

    def __init__(self, labels: Tensor) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.net = nn.Linear(15, 4)
        with torch.no_grad():
            self.net.bias.copy_(-0.5 * self.net.weight.sum(1))
        self.labels = labels
        self.log: list[Call] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Counting:
        return self

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        logits: Tensor = self.net(flat[:, 1:]) * 3
        tags = (flat[:, 0].detach() * 100).round().long()
        margin = margins(logits.detach(), self.labels[tags])
        self.log.append(Call(tags.tolist(), (margin >= 2 * clear_margin(logits.detach())).tolist(), logits.requires_grad))
        return logits


def counted(count: int = 90) -> tuple[Counting, Tensor, Tensor]:
    x = 0.45 + 0.1 * torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    x[:, 0, 0, 0] = torch.arange(count) / 100
    module = Counting(torch.zeros(100, dtype=torch.int64))
    y = module(x).argmax(1)
    module.labels[:count] = y
    module.log.clear()
    return module, x, y


def expected_counts(log: list[Call], count: int, iterations: int, *, never: bool = False) -> tuple[list[int], list[int], list[int]]:
    """Queries and gradients per sample as the definition has them, and all forwards with it in them.

    A query is a row through the forward after the clean check. Padding repeats a row of the same
    call, and a row that is through may stay in its batch for a while: neither counts.
    """
    queries, gradients, forwards = Counter[int](), Counter[int](), Counter[int]()
    attempt_steps, hit = Counter[int](), set[int]()
    for call in log:
        for tag in set(call.tags):
            forwards[tag] += 1
            if not call.with_gradient:
                queries[tag] += 1  # the Judge's confirmation
                attempt_steps[tag] = 0
                continue
            if attempt_steps[tag] >= iterations or (tag in hit and not never):
                continue  # lingers
            attempt_steps[tag] += 1
            queries[tag] += 1
            gradients[tag] += 1
            if any(error for error, name in zip(call.errors, call.tags) if name == tag):
                hit.add(tag)
    every = range(count)
    return [queries[i] for i in every], [gradients[i] for i in every], [forwards[i] for i in every]


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt of a sample at a time, so that a log of calls can be read per sample."""
    monkeypatch.setattr(Driver, "_try_ahead", lambda *_: False)


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


# ---- first hit, restarts


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
            _, verified, _, logits, _ = verdict
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
    grown = cross_entropy(model.logits(one.adversarial), y, aim) - cross_entropy(model.logits(x), y, aim)
    assert bool((grown[clean] >= -1e-5).all())


def test_attacks_that_look_beyond_the_budget_cannot_run_on() -> None:
    x, y = samples(4)
    with pytest.raises(BadInput, match="stop='never'"):
        registry.make("attack", "fab:steps=2")(network(), x, y, threat=Linf("0.1"), stop="never")


# ---- memory


class Small(nn.Module):
    """Raises as CUDA does when more than `most` rows come at once."""

    def __init__(self, most: int, problem: Callable[[], Exception]) -> None:
        super().__init__()
        self.net, self.most, self.problem = network(), most, problem
        self.largest = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Small:
        return self

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise self.problem()
        self.largest = max(self.largest, len(x))
        logits: Tensor = self.net(x)
        return logits


@pytest.mark.parametrize("most", [16, 40, 64])
@pytest.mark.parametrize(
    "problem",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["cuda", "cpu"],
)
def test_out_of_memory_gives_the_same_result(most: int, problem: Callable[[], Exception]) -> None:
    x, y = samples(150)
    attack = PGD(steps=4, restarts=2)
    expected = attack(network(), x, y, threat=Linf("0.02"))
    small = Small(most, problem)
    same(attack(small, x, y, threat=Linf("0.02"), batch_size=160), expected)
    assert small.largest == most // 16 * 16 or small.largest > most // 2


def test_out_of_memory_in_the_middle_of_the_work() -> None:
    """The third gradient fails once: what was begun is begun anew, nothing is lost or counted twice."""
    x, y = samples(150)
    attack = PGD(steps=4, restarts=2)
    expected = attack(network(), x, y, threat=Linf("0.02"))
    calls = Counter[str]()

    class Once(Small):
        def forward(self, x: Tensor) -> Tensor:
            calls["gradient"] += torch.is_grad_enabled()
            if torch.is_grad_enabled() and calls["gradient"] == 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)

    same(attack(Once(10**6, RuntimeError), x, y, threat=Linf("0.02"), batch_size=64), expected)


def test_memory_that_does_not_hold_sixteen_rows_is_an_error() -> None:
    x, y = samples(20)
    with pytest.raises(torch.OutOfMemoryError):
        PGD(steps=2)(Small(8, lambda: torch.OutOfMemoryError("CUDA out of memory")), x, y, threat=Linf("0.02"))
    with pytest.raises(RuntimeError, match="another problem"):
        PGD(steps=2)(Small(8, lambda: RuntimeError("another problem")), x, y, threat=Linf("0.02"), batch_size=8)


# ---- bad input


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 0}, "batch size"),
        ({"batch_size": "many"}, "batch size"),
        ({"batch_size": 2.5}, "batch size"),
        ({"threat": "l7:1"}, "unknown threat"),
        ({"goal": "targeted"}, "unknown goal"),
        ({"stop": "late"}, "stop"),
        ({"y": None}, "labels"),
        ({"y": torch.full((20,), 5)}, "classes 0..4"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, "one label per image"),
        ({"x": torch.zeros(0, 1, 8, 8)}, "empty|no images|0 images"),
        ({"x": torch.full((20, 1, 8, 8), 2.0)}, "values from"),
        ({"x": torch.full((20, 1, 8, 8), torch.nan)}, "NaN"),
        ({"x": torch.zeros(20, 3, 8, 8)}, "fails on images"),
        ({"model": "nothing"}, "no model"),
    ],
    ids=str,
)
def test_bad_input_is_refused(change: dict[str, Any], says: str) -> None:
    x, y = samples(20)
    given: dict[str, Any] = {"model": network(), "x": x, "y": y, "threat": "linf:0.02"} | change
    with pytest.raises(BadInput, match=says):
        PGD(steps=1)(given.pop("model"), given.pop("x"), given.pop("y"), **given)


def test_the_first_batch_fits() -> None:
    for shape in ((1, 8, 8), (3, 224, 224), (3, 2000, 2000)):
        for device in ("cpu", "cuda"):
            assert auto_batch(shape, torch.device(device)) % 16 == 0
            assert auto_batch(shape, torch.device(device)) >= 16

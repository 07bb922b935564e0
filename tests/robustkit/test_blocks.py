"""Attacks with loops of their own: counts, random numbers, failures, access, and the smallest witness."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.attacks import FAB, PGD, FoolboxAttack
from robustkit.blocks import BlockAttack, BlockDriver
from robustkit.classifier import Classifier
from robustkit.clock import Clock
from robustkit.core.comparisons import float_below
from robustkit.driver import Driver
from robustkit.errors import BadInput, OutOfTime
from robustkit.methods import Rows
from robustkit.radius import SHRINKS, shrink
from robustkit.samples import Outcome, Samples
from robustkit.sharing import make_driver
from robustkit.smallest import SmallestDriver
from robustkit.threats import Threat, load_threat
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge
from robustkit.watch import Watch


class Counting(nn.Module):
    """A linear model that counts rows on its own: sent forward, and backward."""

    forwards = 0
    backwards = 0

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(16, 3, generator=generator) / 4)

    def forward(self, x: Tensor) -> Tensor:
        Counting.forwards += len(x)
        logits = x.flatten(1) @ self.weight
        if logits.requires_grad:
            logits.register_hook(lambda gradient: setattr(Counting, "backwards", Counting.backwards + len(gradient)))
        return logits


def images(count: int) -> Tensor:
    return streams.uniform(streams.row_keys(0, "images", torch.arange(count)), (1, 4, 4)) * 0.6 + 0.2


class CountedJudge(Judge):
    """Counts the points it is asked about, and what its batches are padded to."""

    asked = padding = 0

    def confirm(self, x: Tensor, y: Tensor, target: Tensor, p: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        before = Counting.forwards
        found = super().confirm(x, y, target, p, eps)
        CountedJudge.asked += len(x)
        CountedJudge.padding += Counting.forwards - before - len(x)
        return found


class Bench:
    """A judge of the counting model, and samples of it."""

    def __init__(self, threat: str, count: int, goal: str = "untargeted") -> None:
        self.x, self.judge = images(count), CountedJudge(Classifier(Counting()), load_threat(threat), Goal(goal))
        logits = self.judge.logits(self.x)
        y, index = logits.argmax(1), torch.arange(count)
        target = self.judge.goal.targets(y, index, 3, 0)
        eps = torch.full((count,), float_below(self.judge.threat.eps), dtype=torch.float64)
        self.samples = Samples(index, y, target, logits, eps, lambda at: self.x[at])
        Counting.forwards = Counting.backwards = CountedJudge.asked = CountedJudge.padding = 0

    def run(self, attack: Any, at: list[int] | None = None, **options: Any) -> Outcome:
        """Outcomes in the order of the samples."""
        found: list[Outcome] = []
        samples = self.samples if at is None else self.samples.pick(torch.tensor(at))
        make_driver(attack, self.judge, **options).run(samples, found.append)
        joined = Outcome.join(found)
        return joined.pick(joined.at.argsort())


def same(one: Outcome, other: Outcome) -> None:
    for name, value in vars(one).items():
        if name != "at":
            assert torch.equal(value, getattr(other, name)), name


@dataclass(frozen=True)
class Alone(BlockAttack):
    """Random points, drawn from the global generators of torch, NumPy and Python, until one is adversarial."""

    steps: int = 30
    fails_above: float = 2.0

    name, access, threats = "alone", "decision", ("linf",)

    @property
    def iterations(self) -> int:
        return self.steps

    def search(self, rows: Rows, watch: Watch, threat: Threat) -> Tensor:
        assert len(rows) == 1
        if float(rows.x[0, 0, 0, 0]) > self.fails_above:
            raise RuntimeError("this image is not to my liking")
        image = rows.x
        for _ in range(self.steps):
            scale = random.random() * float(np.random.rand())
            image = (rows.x + scale * (torch.rand(5, *rows.x.shape[1:]) * 2 - 1)).clamp(0, 1)
            decisions = watch(image)
            assert set(decisions.unique().tolist()) <= {0.0, 1.0}
            assert decisions.sum(1).eq(1).all()
        return image[:1]


@dataclass(frozen=True)
class Together(BlockAttack):
    """Steps along the gradient, rows side by side."""

    steps: int = 10
    fails_above: float = 2.0

    name, access, together, threats = "together", "gradient", True, ("linf",)

    @property
    def iterations(self) -> int:
        return self.steps

    def search(self, rows: Rows, watch: Watch, threat: Threat) -> Tensor:
        if bool((rows.x[:, 0, 0, 0] > self.fails_above).any()):
            raise RuntimeError("this image is not to my liking")
        image = rows.x
        for _ in range(self.steps):
            leaf = image.detach().requires_grad_()
            own = watch(leaf).gather(1, rows.y[:, None]).sum()
            image = (leaf - 0.01 * torch.autograd.grad(own, leaf)[0].sign()).clamp(0, 1)
        return image


def test_counts_are_those_of_an_independent_counter() -> None:
    bench = Bench("linf:0.5", 32)
    found = bench.run(Together(), stop="smallest", batch_size=16)
    assert int(found.gradients.sum()) == Counting.backwards == 32 * 10
    assert Counting.forwards - CountedJudge.padding - CountedJudge.asked == 32 * 10
    assert found.queries.tolist() == [11] * 32, "of what the Judge asks one counts, for what is delivered"
    assert 32 < CountedJudge.asked < 32 * 11, "every nearer point is judged, and every last one"
    assert bench.judge.classifier.backwards == Counting.backwards

    bench = Bench("linf:0.01", 3)
    found = bench.run(Alone(), stop="smallest")
    assert Counting.forwards - CountedJudge.padding - CountedJudge.asked == 3 * 30 * 5
    assert found.queries.tolist() == [30 * 5 + 1] * 3
    assert int(found.gradients.sum()) == Counting.backwards == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [("ddn", {"steps": 7}), ("pgd", {"steps": 7}), ("deepfool", {"steps": 3}), ("sparse-l1-descent", {"steps": 5})],
)
def test_counts_of_foolboxs_attacks(name: str, options: dict[str, Any]) -> None:
    bench = Bench("l1:0.001" if name == "sparse-l1-descent" else "l2:0.001", 16)
    found = bench.run(FoolboxAttack(name, **options), stop="smallest")
    assert int(found.queries.sum()) == Counting.forwards - CountedJudge.padding - CountedJudge.asked + 16
    assert int(found.gradients.sum()) == Counting.backwards > 0
    bench = Bench("l2:9", 3)
    found = bench.run(FoolboxAttack("carlini-wagner", steps=20, binary_search_steps=3, initial_const=1), stop="smallest")
    assert int(found.gradients.sum()) == Counting.backwards == int(found.queries.sum()) - 3 > 0
    assert bool(found.success.all())


@pytest.mark.parametrize("attack", [Alone(), Together(), FoolboxAttack("uniform-noise"), FoolboxAttack("repeated-uniform-noise")])
@pytest.mark.parametrize("stop", ["first", "smallest"])
def test_company_order_and_batches_do_not_matter(attack: Any, stop: str) -> None:
    bench = Bench("linf:0.3", 40)
    whole = bench.run(attack, stop=stop, batch_size=64)
    assert bool(whole.success.any())
    assert not bool(whole.success.all())
    assert bool((whole.size[whole.success] <= 0.3).all())
    same(whole, bench.run(attack, stop=stop, batch_size=1))
    some = [31, 2, 17, 5]
    same(whole.pick(torch.tensor(some)), bench.run(attack, some, stop=stop))


def test_the_users_random_numbers_are_left_alone() -> None:
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    bench = Bench("linf:0.3", 4)
    one = bench.run(Alone())
    after = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    assert before[0] == after[0]
    assert all(np.array_equal(a, b) for a, b in zip(before[1], after[1]))
    assert torch.equal(before[2], after[2])
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    same(one, bench.run(Alone()))
    other = bench.run(Alone(), seed=1)
    assert not torch.equal(one.parameters, other.parameters)


@pytest.mark.parametrize("kind", [Alone, Together])
def test_a_sample_that_raises_does_not_end_the_others(kind: Any) -> None:
    bench = Bench("linf:0.3", 20)
    corner = bench.x[:, 0, 0, 0]
    bad = (corner > float(corner.sort().values[-4])).nonzero()[:, 0]
    assert len(bad) == 3
    attack = kind(fails_above=float(corner.sort().values[-4]))
    with pytest.warns(RuntimeWarning, match=f"raised on 3 of 20 samples.*dataset index {int(bad[0])}.*not to my liking"):
        found = bench.run(attack, seed=5)
    assert not bool(found.success[bad].any())
    assert found.queries[bad].tolist() == [1, 1, 1], "the Judge looked at the clean image"
    rest = [i for i in range(20) if i not in bad.tolist()]
    same(found.pick(torch.tensor(rest)), bench.run(attack, rest, seed=5))
    assert bool(found.success[rest].any())


def test_what_was_found_before_an_error_counts() -> None:
    @dataclass(frozen=True)
    class Stumbling(Together):
        def search(self, rows: Rows, watch: Watch, threat: Threat) -> Tensor:
            super().search(rows, watch, threat)
            raise AssertionError("at the end")

    bench = Bench("linf:0.5", 20)
    easy = bench.run(Together(steps=40), stop="smallest").success.nonzero()[:, 0].tolist()
    assert easy
    assert bool(bench.run(Stumbling(steps=40), easy, stop="smallest").success.all())


@pytest.mark.parametrize(("short", "queries"), [(1e-6, 2), (0.02, 3), (0.5, 4)])
def test_a_minimum_norm_attack_that_ends_on_the_boundary_is_pushed_over_it(short: float, queries: int) -> None:
    @dataclass(frozen=True)
    class Onto(Together):
        minimum_norm = True

        def search(self, rows: Rows, watch: Watch, threat: Threat) -> Tensor:
            best = watch(rows.x).scatter(1, rows.y[:, None], -torch.inf).argmax(1)
            weight = watch.classifier.module.weight.T.double()  # type: ignore[union-attr]
            normal, x = weight[best] - weight[rows.y], rows.x.flatten(1).double()
            onto = normal * (-(normal * x).sum(1) / normal.square().sum(1))[:, None]
            return (x + (1 - short) * onto).float().view_as(rows.x)

    bench = Bench("linf:0.5", 20)
    found = bench.run(Onto(), stop="smallest")
    clear = found.queries == 1 + queries
    assert int(clear.sum()) >= 14  # rounding takes some over it
    assert bool((found.success[clear] == (short < 0.1)).all())
    assert not bool(found.success[(found.queries == 5)].any()) or short < 0.1


def test_time_limits_and_interrupts_end_the_run_inside_a_block() -> None:
    bench, clock = Bench("linf:0.01", 2), Clock(3600)
    ticks = []

    def tick(finished: int) -> None:
        ticks.append(finished)
        if len(ticks) == 40:
            clock.deadline = 0.0
        clock.tick(finished)

    found: list[Outcome] = []
    state = torch.random.get_rng_state()
    with pytest.raises(OutOfTime):
        BlockDriver(Alone(), bench.judge, tick=tick).run(bench.samples, found.append)
    assert [outcome.at.tolist() for outcome in found] == [[0]], "the second block is lost, the first is not"
    assert torch.equal(state, torch.random.get_rng_state())

    def interrupt(finished: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BlockDriver(Together(), bench.judge, tick=interrupt).run(bench.samples, found.append)


def test_scores_have_no_gradient_and_decisions_no_scores() -> None:
    seen: dict[str, Tensor] = {}

    @dataclass(frozen=True)
    class Peek(Together):
        def search(self, rows: Rows, watch: Watch, threat: Threat) -> Tensor:
            seen[self.access] = watch(rows.x.clone().requires_grad_())
            return rows.x

    for access in ("gradient", "score", "decision"):
        attack = Peek()
        object.__setattr__(attack, "access", access)
        Bench("linf:0.1", 4).run(attack)
    assert seen["gradient"].requires_grad
    assert not seen["score"].requires_grad
    assert torch.equal(seen["score"], seen["gradient"].detach())
    assert torch.equal(seen["decision"], nn.functional.one_hot(seen["score"].argmax(1), 3).float())


def test_never_and_the_wrong_goal_are_refused() -> None:
    with pytest.raises(BadInput, match="stop='never'"):
        Bench("linf:0.1", 2).run(Together(), stop="never")
    with pytest.raises(BadInput, match="cannot aim"):
        Bench("l2:1", 2, goal="targeted:next").run(FoolboxAttack("newton-fool"))


def test_each_attack_gets_its_driver() -> None:
    judge = Bench("linf:0.1", 1).judge
    assert type(make_driver(PGD(), judge).driver) is Driver
    assert type(make_driver(PGD(), judge, stop="smallest").driver) is SmallestDriver
    assert type(make_driver(Together(), judge).driver) is BlockDriver


@pytest.mark.parametrize(("family", "dual"), [("linf", 1), ("l2", 2)])
def test_fabs_smallest_is_the_distance_to_the_plane(family: str, dual: float) -> None:
    bench = Bench(f"{family}:9", 30)
    weight = bench.judge.classifier.module.weight.double()  # type: ignore[union-attr]
    exact = torch.full((30,), torch.inf, dtype=torch.float64)
    for other in range(3):
        normal = weight.T[other] - weight.T[bench.samples.y]
        value = (normal * bench.x.flatten(1).double()).sum(1).abs()
        exact = torch.where(
            bench.samples.y == other, exact, torch.minimum(exact, value / torch.linalg.vector_norm(normal, ord=dual, dim=1))
        )
    found = bench.run(FAB(steps=50), stop="smallest")
    assert bool(found.success.all())
    assert bool((found.size >= exact * (1 - 1e-5)).all())
    assert bool((found.size <= exact * 1.02).all())
    first = bench.run(FAB(steps=50))
    assert bool((found.size <= first.size).all())
    same(found.pick(torch.tensor([7, 3])), bench.run(FAB(steps=50), [7, 3], stop="smallest", batch_size=1))


@pytest.mark.parametrize("family", ["linf", "l2", "l1", "l0"])
def test_shrinking_keeps_what_is_broken_and_counts(family: str) -> None:
    bench = Bench(f"{family}:{1 if family == 'linf' else 16}", 12)
    attack = FoolboxAttack("blended-noise", steps=4)
    found = bench.run(attack, stop="smallest")
    smaller = shrink(bench.judge, bench.samples, found)
    hit = found.success
    assert bool(hit.any())
    assert torch.equal(smaller.success, hit)
    assert bool((smaller.size[hit] <= found.size[hit]).all())
    assert bool((smaller.size[hit] < found.size[hit]).any())
    assert torch.equal(smaller.queries, found.queries + SHRINKS * hit)
    p, x, samples = smaller.parameters[hit], bench.x[hit], bench.samples
    assert torch.equal(bench.judge.threat.size(x, p), smaller.size[hit])
    logits = bench.judge.logits(bench.judge.threat.apply(x, p))
    assert torch.equal(logits.argmax(1), smaller.predicted[hit])
    assert bool((logits.argmax(1) != samples.y[hit]).all())


def test_a_curve_takes_one_run_of_a_minimum_norm_attack(go: Any, small_units: int) -> None:
    options = {"threat": "l2:0.4", "certifiers": ["none"], "curve": True, "attacks": ["foolbox:ddn,steps=30"]}
    run = go(**options)
    rows = run.summary()["stages"]
    assert [row["name"] for row in rows] == ["foolbox:ddn radius"]
    assert rows[0]["queries"] <= rows[0]["received"] * (2 * 30 + 1 + SHRINKS)  # a step's point is judged where it is nearer
    points = [point["robust_accuracy"] for point in run.summary()["curve"]]
    assert None not in points
    assert points == sorted(points, reverse=True)
    assert len(set(points)) > 5
    settled = go(**options | {"curve": False})
    assert abs(settled.summary()["robust_accuracy"] - run.summary()["robust_accuracy"]) <= 0.02
    go.same(run, go(**options, batch_size=16))


def test_a_run_cut_short_ends_with_the_same_result(go: Any, small_units: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"threat": "l2:0.6", "certifiers": ["none"], "attacks": ["foolbox:boundary,steps=20"], "data": "digits:n=40"}
    whole = go(**options)
    ticks = [0]

    def tick(self: Clock, finished: int = 0) -> None:
        ticks[0] += 1
        if ticks[0] == 1500:
            raise OutOfTime("cut")

    with monkeypatch.context() as patch:
        patch.setattr(Clock, "tick", tick)
        cut = go(**options, out=tmp_path / "cut")
    assert cut.status == "incomplete"
    assert 0 < len(list((tmp_path / "cut" / "units").glob("01-*/*.safetensors"))) < 3
    go.same(whole, go(**options, out=tmp_path / "cut"))

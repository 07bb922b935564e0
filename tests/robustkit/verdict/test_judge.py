"""The Judge: what counts as correct, and which claimed witnesses it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from robustkit.classifier import Classifier
from robustkit.core.comparisons import float_below
from robustkit.threats import L2, Linf, Threat
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge


class Function(nn.Module):
    """A model made of any function of the images."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def judge(function: Callable[[Tensor], Tensor], threat: Threat | None = None, goal: str = "untargeted") -> Judge:
    return Judge(Classifier(Function(function)), threat or Linf("0.1"), Goal(goal))


def first_three(x: Tensor) -> Tensor:
    """The logits are the first three values."""
    return x.flatten(1)[:, :3]


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(len(values), 1, 1, -1)


def correct(court: Judge, x: Tensor, y: list[int]) -> list[bool]:
    found: list[bool] = court.correct(x, torch.tensor(y), court.logits(x)).tolist()
    return found


def confirm(court: Judge, x: Tensor, y: list[int], p: Tensor, *, target: int = -1, eps: float | None = None) -> list[bool]:
    budget = torch.full((len(x),), float_below(court.threat.eps) if eps is None else eps, dtype=torch.float64)
    verified, size, logits = court.confirm(x, torch.tensor(y), torch.full((len(x),), target), p, budget)
    assert size.dtype == torch.float64
    assert torch.equal(torch.isfinite(size), verified)
    assert logits.shape == (len(x), court.logits(x).shape[1])
    found: list[bool] = verified.tolist()
    return found


# ---- correct


def test_only_the_strictly_highest_label_is_correct() -> None:
    x = rows([0.5, 0.2, 0.1], [0.5, 0.5, 0.1], [0.2, 0.5, 0.5], [0.0, 0.0, 0.0], [0.1, 0.5, 0.9])
    assert correct(judge(first_three), x, [0, 0, 1, 2, 0]) == [True, False, False, False, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_logit_that_is_no_number_is_an_error(bad: float, where: int) -> None:
    def spoiled(x: Tensor) -> Tensor:
        return first_three(x).index_fill(1, torch.tensor(where), bad)

    x = rows([0.9, 0.2, 0.1], [0.1, 0.9, 0.2], [0.1, 0.2, 0.9])
    assert correct(judge(spoiled), x, [0, 1, 2]) == [False] * 3


def test_margins_near_zero_are_redone_in_float64() -> None:
    def finer(x: Tensor) -> Tensor:
        base = torch.full((len(x), 3), 0.5, dtype=x.dtype)
        base[:, 0] += (x.flatten(1)[:, 0] - 0.5) * 1e-9  # lost in float32, not in float64
        return base

    x = rows([0.75, 0, 0], [0.25, 0, 0], [0.5, 0, 0])
    assert correct(judge(finer), x, [0, 0, 0]) == [True, False, False]
    assert correct(judge(finer), x, [1, 1, 1]) == [False, False, False]  # class 2 ties with class 1


def test_float64_overrules_float32_only_near_zero() -> None:
    def differs(x: Tensor) -> Tensor:
        sign = 1.0 if x.dtype == torch.float32 else -1.0
        return torch.stack([sign * (x.flatten(1)[:, 0]), torch.zeros(len(x), dtype=x.dtype)], 1)

    x = rows([1e-6], [1e-3])
    assert correct(judge(differs), x, [0, 0]) == [False, True]


def test_verdicts_do_not_depend_on_the_batch() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
        x = torch.rand(50, 1, 8, 8)
        p = 0.05 * torch.randn(50, 1, 8, 8)
    for threat in (Linf("0.2"), L2("1")):
        court = Judge(Classifier(model), threat, Goal())
        y = torch.arange(50) % 10
        aim, eps = torch.full((50,), -1), torch.full((50,), float_below(threat.eps), dtype=torch.float64)
        whole = court.confirm(x, y, aim, p, eps)
        for step in (1, 7, 17):
            parts = [court.confirm(*(v[i : i + step] for v in (x, y, aim, p, eps))) for i in range(0, 50, step)]
            for one, other in zip(whole, zip(*parts)):
                assert torch.equal(one, torch.cat(other))


# ---- witnesses


def test_a_witness_is_adversarial_and_within_the_budget() -> None:
    x = rows([0.5, 0.45, 0.1], [0.5, 0.35, 0.1])
    p = rows([0.0, 0.09, 0.0], [0.0, 0.09, 0.0])
    assert confirm(judge(first_three), x, [0, 0], p) == [True, False]


@pytest.mark.parametrize("threat", [Linf("0.1"), L2("0.1")], ids=["linf", "l2"])
def test_a_witness_just_outside_the_budget_is_refused(threat: Threat) -> None:
    def always_wrong(x: Tensor) -> Tensor:
        return torch.tensor([0.0, 1.0]).expand(len(x), 2)

    x = torch.zeros(3, 1, 1, 1)
    p = torch.tensor([0.1 + 1e-7, 0.1 - 1e-8, 0.1]).view(3, 1, 1, 1)
    assert Fraction(float(p[2])) > Fraction(1, 10)  # 0.1 in float32
    assert confirm(judge(always_wrong, threat), x, [0, 0, 0], p) == [False, True, False]
    assert confirm(judge(always_wrong, threat), x, [0, 0, 0], p, eps=math.inf) == [True, True, True]
    assert confirm(judge(always_wrong, threat), x, [0, 0, 0], p, eps=0.0) == [False, False, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_parameter_that_is_no_number_is_refused(bad: float) -> None:
    def always_wrong(x: Tensor) -> Tensor:
        return torch.tensor([0.0, 1.0]).expand(len(x), 2)

    p = torch.zeros(1, 1, 1, 4)
    p[..., 2] = bad
    for threat in (Linf("1"), L2("9")):
        assert confirm(judge(always_wrong, threat), torch.full((1, 1, 1, 4), 0.5), [0], p, eps=math.inf) == [False]


def test_an_image_outside_the_box_is_refused() -> None:
    class Unclamped(Linf):
        def apply(self, x: Tensor, p: Tensor) -> Tensor:
            return x + p

    def always_wrong(x: Tensor) -> Tensor:
        return torch.tensor([0.0, 1.0]).expand(len(x), 2)

    x = rows([0.95, 0.5], [0.05, 0.5], [0.5, 0.5])
    p = rows([0.0625, 0.0], [-0.0625, 0.0], [0.0625, 0.0])
    assert confirm(judge(always_wrong, Unclamped("0.1")), x, [0, 0, 0], p) == [False, False, True]


def test_a_witness_needs_a_clear_margin() -> None:
    x = torch.zeros(4, 1, 1, 3)
    p = rows([0.05, 0.05 + 1e-6, 0.0], [0.05, 0.05 + 5e-6, 0.0], [0.05, 0.0502, 0.0], [0.05, 0.05, 0.0])
    assert confirm(judge(first_three), x, [0] * 4, p) == [False, False, True, True]  # the last is a tie, an error


def test_a_tie_in_float32_must_stand_in_float64() -> None:
    def finer(x: Tensor) -> Tensor:
        base = torch.full((len(x), 2), 0.5, dtype=x.dtype)
        base[:, 0] += x.flatten(1)[:, 0] * 1e-9
        return base

    x = torch.full((3, 1, 1, 1), 0.05)
    assert confirm(judge(finer), x, [0, 0, 0], rows([0.05], [-0.05], [0.0])) == [False, True, False]


def test_a_witness_without_finite_logits_is_an_error_but_no_target() -> None:
    def breaks(x: Tensor) -> Tensor:
        logits = first_three(x).clone()
        logits[x.flatten(1)[:, 0] > 0.5] = math.nan
        return logits

    x, p = rows([0.45, 0.1, 0.2]), rows([0.09, 0.0, 0.0])
    assert confirm(judge(breaks), x, [0], p) == [True]
    for target in range(1, 3):
        assert confirm(judge(breaks, goal="targeted:next"), x, [0], p, target=target) == [False]


def test_a_targeted_witness_hits_its_target_alone() -> None:
    court = judge(first_three, goal="targeted:next")
    x = rows([0.5, 0.45, 0.1], [0.5, 0.1, 0.45], [0.5, 0.41, 0.1])
    p = rows([0.0, 0.09, 0.0], [0.0, 0.0, 0.09], [0.0, 0.09, 0.0])
    assert confirm(court, x, [0, 0, 0], p, target=1) == [True, False, False]
    assert confirm(court, x, [0, 0, 0], p, target=2) == [False, True, False]


def test_the_image_is_made_again_from_the_parameter() -> None:
    seen: list[Tensor] = []

    def watch(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return first_three(x)

    x, p = rows([0.95, 0.02, 0.5]), rows([0.09, -0.09, 0.05])
    court = judge(watch)
    court.confirm(x, torch.tensor([0]), torch.tensor([-1]), p, torch.tensor([0.1], dtype=torch.float64))
    assert torch.equal(seen[-1][0], (x + p).clamp(0, 1)[0])
    assert len(seen[-1]) == 16


def test_the_model_is_asked_in_exact_arithmetic_without_gradients() -> None:
    seen: list[tuple[object, ...]] = []

    def watch(x: Tensor) -> Tensor:
        seen.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return first_three(x)

    court = judge(watch)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with torch.autocast("cpu"):
            x = torch.full((1, 1, 1, 3), 0.5)
            court.confirm(x, torch.tensor([0]), torch.tensor([-1]), x * 0, torch.tensor([0.1], dtype=torch.float64))
            court.correct(x, torch.tensor([0]), court.logits(x))
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(seen) >= 4  # logits of the witness, its tie in float64, clean logits, their tie in float64
    assert set(seen) == {("highest", False, False)}


def test_out_of_memory_halves_the_batch() -> None:
    sizes: list[int] = []

    def small_memory(x: Tensor) -> Tensor:
        sizes.append(len(x))
        if len(x) > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return first_three(x)

    x = torch.rand(100, 1, 1, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(judge(small_memory).logits(x), first_three(x))
    assert max(sizes) == 112
    assert all(size % 16 == 0 for size in sizes)
    with pytest.raises(RuntimeError, match="something else"):
        judge(_fails).logits(x)


def _fails(x: Tensor) -> Tensor:
    raise RuntimeError("something else")

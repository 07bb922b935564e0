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


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_only_minus_infinity_of_another_class_is_an_ordinary_logit(bad: float, where: int) -> None:
    def spoiled(x: Tensor) -> Tensor:
        return first_three(x).index_fill(1, torch.tensor(where), bad)

    x = rows([0.9, 0.2, 0.1], [0.1, 0.9, 0.2], [0.1, 0.2, 0.9])
    assert correct(judge(spoiled), x, [0, 1, 2]) == [bad == -math.inf and label != where for label in range(3)]


def finer_in_float64(x: Tensor) -> Tensor:
    """Two logits that float32 holds at 0.5 and 0.5 + 2**-24, and float64 in an order that the image decides."""
    flat = x.flatten(1)[:, 0]
    ahead = torch.full_like(flat, 0.5 + 2.0**-24) if x.dtype == torch.float32 else 0.5 + (flat - 0.5) * 1e-9
    return torch.stack([ahead, torch.full_like(flat, 0.5)], 1)


def test_float64_adds_errors_where_rounding_could_decide() -> None:
    x = rows([0.75], [0.25], [0.5])  # float64: right, wrong, a tie
    assert correct(judge(finer_in_float64), x, [0, 0, 0]) == [True, False, False]
    assert correct(judge(finer_in_float64), x, [1, 1, 1]) == [False, False, False]


def test_float64_never_excuses_an_error() -> None:
    def tie_in_float32(x: Tensor) -> Tensor:
        ahead = torch.full_like(x.flatten(1)[:, 0], 0.5)
        return torch.stack([ahead + (1e-9 if x.dtype == torch.float64 else 0.0), torch.full_like(ahead, 0.5)], 1)

    assert correct(judge(tie_in_float32), rows([0.1]), [0]) == [False]
    assert confirm(judge(tie_in_float32), rows([0.1]), [0], rows([0.0])) == [True]


def test_float64_is_not_asked_where_rounding_cannot_decide() -> None:
    """A network can compute something else in float64 on purpose: such a dissent must not break what is clearly right."""

    def differs(x: Tensor) -> Tensor:
        sign = 1.0 if x.dtype == torch.float32 else -1.0
        return torch.stack([sign * x.flatten(1)[:, 0], torch.full((len(x),), 0.5, dtype=x.dtype)], 1)

    x = rows([0.5 + 1e-6], [0.5 + 1e-3])  # 17 and 16 777 units in the last place ahead
    assert correct(judge(differs), x, [0, 0]) == [False, True]


def test_an_image_on_the_edge_is_also_asked_alone() -> None:
    def shy(x: Tensor) -> Tensor:
        behind = torch.full((len(x),), 0.5, dtype=x.dtype)
        return torch.stack([behind + (-1e-6 if len(x) == 1 else 1e-6), behind], 1)

    assert correct(judge(shy), rows([0.1], [0.2]), [0, 0]) == [False, False]


_HIDDEN: dict[str, Callable[[Tensor], Tensor]] = {
    "small": lambda z: z * 1e-6,
    "tiny": lambda z: z * 2.0**-100,
    "large": lambda z: z * 1e30,
    "shifted": lambda z: z + 1000,
    "masked": lambda z: torch.cat([z, torch.full((len(z), 2), -1e9)], 1),
    "masked with the least number": lambda z: torch.cat([z, torch.full((len(z), 2), torch.finfo(torch.float32).min)], 1),
    "masked with -inf": lambda z: torch.cat([z, torch.full((len(z), 2), -math.inf)], 1),
}


@pytest.mark.parametrize("hide", _HIDDEN.values(), ids=_HIDDEN)
def test_no_scale_offset_or_mask_hides_an_error(hide: Callable[[Tensor], Tensor]) -> None:
    """A margin relative to the logits, as version 1 of the rule had it, let all of these through."""
    court = judge(lambda x: hide(first_three(x)))
    x, p = rows([0.5, 0.45, 0.1], [0.5, 0.35, 0.1]), rows([0.0, 0.06, 0.0], [0.0, 0.06, 0.0])
    assert correct(court, x, [0, 0]) == [True, True]
    assert confirm(court, x, [0, 0], p) == [True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_other_precision_are_judged_by_their_own_order(dtype: torch.dtype) -> None:
    court = judge(lambda x: first_three(x).to(dtype))
    x = rows([0.5, 0.2, 0.1], [0.2, 0.5, 0.1], [0.5, 0.5, 0.0])
    assert correct(court, x, [0, 0, 0]) == [True, False, False]
    assert court.classifier.half == (dtype != torch.float64)


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


def test_a_witness_needs_no_margin() -> None:
    x = torch.zeros(4, 1, 1, 3)
    p = rows([0.05, 0.05 + 1e-6, 0.0], [0.05, 0.05 + 4e-9, 0.0], [0.05, 0.0502, 0.0], [0.05, 0.05, 0.0])
    assert confirm(judge(first_three), x, [0] * 4, p) == [True, True, True, True]  # the last is a tie, an error
    assert confirm(judge(first_three), x[:1], [0], rows([0.0501, 0.05, 0.0])) == [False]


def test_by_rounding_is_what_float64_calls_right() -> None:
    def rounds(x: Tensor) -> Tensor:
        behind = torch.full((len(x),), 0.5, dtype=x.dtype)
        return torch.stack([behind + (x.flatten(1)[:, 0] - 0.5) * 1e-9, behind], 1)  # a tie in float32

    court = judge(rounds)
    x, p = rows([0.75], [0.25]), rows([0.0], [0.0])
    assert confirm(court, x, [0, 0], p) == [True, True]
    assert court.by_rounding(x, torch.tensor([0, 0]), torch.tensor([-1, -1]), p).tolist() == [True, False]


def test_a_witness_without_finite_logits_is_an_error_but_no_target() -> None:
    def breaks(x: Tensor) -> Tensor:
        logits = first_three(x).clone()
        logits[x.flatten(1)[:, 0] > 0.5] = math.nan
        return logits

    x, p = rows([0.45, 0.1, 0.2]), rows([0.09, 0.0, 0.0])
    assert confirm(judge(breaks), x, [0], p) == [True]
    for target in range(1, 3):
        assert confirm(judge(breaks, goal="targeted:next"), x, [0], p, target=target) == [False]


def test_a_target_with_an_infinite_logit_is_not_hit() -> None:
    court = judge(lambda x: first_three(x).index_fill(1, torch.tensor(1), math.inf), goal="targeted:next")
    assert confirm(court, rows([0.5, 0.4, 0.1]), [0], rows([0.0, 0.0, 0.0]), target=1) == [False]


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
    assert torch.equal(seen[0][0], (x + p).clamp(0, 1)[0])
    assert len(seen[0]) == 16


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
    assert len(seen) >= 2  # logits of the witness and clean logits
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

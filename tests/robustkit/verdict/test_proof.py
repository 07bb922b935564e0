"""Proofs over samples: strict, redone in float64 near zero, the same in every batch."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from robustkit.certify import IBP
from robustkit.classifier import Classifier
from robustkit.core.comparisons import float_below
from robustkit.errors import BadInput
from robustkit.evaluation.certify_images import certify_images
from robustkit.threats import Linf
from robustkit.verdict.proof import largest_radius, prove


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Fixed:
    """A bound of given margins in float32 and float64 that keeps what it was asked."""

    def __init__(self, single: Tensor, double: Tensor | None = None) -> None:
        self.single, self.double = single, single.double() if double is None else double
        self.calls: list[tuple[torch.dtype, int]] = []

    def __call__(self, x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
        self.calls.append((x.dtype, len(x)))
        which = x.flatten(1)[:, 0].round().long()  # an image holds its own number
        return self.single[which] if x.dtype == torch.float32 else self.double[which]


def numbered(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1)


def full(count: int, eps: float) -> Tensor:
    return torch.full((count,), eps, dtype=torch.float64)


def linear(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model with images at least 0.3 inside the box, labelled by it."""
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        module[1].weight.copy_(torch.randn(3, 16, generator=generator))  # type: ignore[union-attr, operator]
        module[1].bias.zero_()  # type: ignore[union-attr, operator]
    x = torch.rand(40, 1, 4, 4, generator=generator) * 0.4 + 0.3
    return module, x, module(x).argmax(1)


def exact_radius(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The distance in l_inf to the nearest boundary of a linear model."""
    weight, logits = module[1].weight.detach().double(), module.double()(x.double()).detach()  # type: ignore[index]
    module.float()
    distance = (logits.gather(1, y[:, None]) - logits) / (weight[y].unsqueeze(1) - weight).abs().sum(2)
    return distance.scatter(1, y[:, None], torch.inf).amin(1)


def test_a_proof_is_strictly_above_zero() -> None:
    bound = Fixed(torch.tensor([1.0, 0.0, -1.0, torch.nan, torch.inf]))
    proven, margin = prove(bound, numbered(5), torch.zeros(5).long(), full(5, 0.1))
    assert proven.tolist() == [True, False, False, False, False]
    assert margin.tolist() == [1.0, 0.0, -1.0, -torch.inf, -torch.inf]
    rounded, _ = prove(Fixed(torch.zeros(2), torch.tensor([1e-15, 1e-9]).double()), numbered(2), torch.zeros(2).long(), full(2, 0.1))
    assert rounded.tolist() == [False, True], "what float64 may round off proves nothing"


def test_margins_near_zero_are_decided_in_float64() -> None:
    single = torch.tensor([5e-5, 5e-5, -5e-5, 5e-3, 1.0])
    double = torch.tensor([-1e-9, 2e-5, 1e-9, -1.0, -1.0], dtype=torch.float64)
    bound = Fixed(single, double)
    proven, margin = prove(bound, numbered(5), torch.zeros(5).long(), full(5, 0.1))
    assert proven.tolist() == [False, True, True, True, True]
    assert margin[:3].tolist() == double[:3].tolist()
    assert bound.calls == [(torch.float32, 16), (torch.float64, 16)]
    scaled, _ = prove(bound, numbered(5), torch.zeros(5).long(), full(5, 0.1), scale=full(5, 100.0))
    assert scaled.tolist() == [False, True, True, False, True]
    quiet = Fixed(torch.ones(5))
    prove(quiet, numbered(5), torch.zeros(5).long(), full(5, 0.1))
    assert quiet.calls == [(torch.float32, 16)]


def test_the_recheck_works_on_a_real_network() -> None:
    """Logits of 1e4 whose margin float32 hardly holds: only float64 sees the sign of its bound."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[1e4, 2e-3], [1e4, 0.0]]))  # type: ignore[union-attr, operator]
        module[1].bias.copy_(torch.tensor([0.0, 7e-4]))  # type: ignore[union-attr, operator]
    x = torch.tensor([[0.7, 0.9], [0.7, 0.1]]).view(2, 1, 1, 2)
    certificate = IBP()(module, x, torch.tensor([0, 0]), threat=Linf("0.01"))
    assert certificate.radius.tolist() == [float_below(Fraction(1, 100)), -torch.inf]
    assert float(certificate.margin[0]) == pytest.approx(0.89 * 2e-3 - 7e-4, rel=1e-3)


def test_budgets_are_rounded_down() -> None:
    module, x, y = linear()
    for eps in ("1/3000", "1/1000", "2/255000"):
        certificate = certify_images(IBP(), module, x, y, threat=f"linf:{eps}")
        proven = certificate.radius[certificate.radius >= 0]
        assert len(proven)
        assert all(Fraction(float(r)) <= Fraction(eps) for r in proven)


def test_certified_exactly_where_the_boundary_is_farther() -> None:
    module, x, y = linear()
    distance = exact_radius(module, x, y)
    eps = float(distance.median()) * 1.001
    certificate = certify_images(IBP(), module, x, y, threat=Linf(str(eps)))
    assert torch.equal(certificate.radius >= 0, distance > eps)
    assert torch.equal(certificate.margin > 0, certificate.radius >= 0)
    assert certificate.guarantee == "real-arithmetic" and certificate.dtype == "float32"


def test_the_radius_search_comes_close_and_never_over() -> None:
    module, x, y = linear()
    distance = exact_radius(module, x, y)
    certificate = certify_images(IBP(), module, x, y, threat="linf:0.1", radius=True)
    assert bool((certificate.radius < distance).all())
    assert bool((certificate.radius > distance - 2e-5).all())
    bound = IBP().bind(Classifier(module), Linf("0.1"))
    proven, margin = prove(bound, x, y, certificate.radius)
    assert bool(proven.all())
    torch.testing.assert_close(margin, certificate.margin, rtol=0, atol=1e-5)


def test_radius_search_keeps_what_is_known() -> None:
    module, x, y = linear()
    distance, bound = exact_radius(module, x, y), IBP().bind(Classifier(module), Linf("0.1"))
    low = distance * torch.tensor([0.5, 1.5] * 20, dtype=torch.float64)
    radius, margin = largest_radius(bound, x, y, low, low + 1.0)
    assert bool((radius[1::2] == -torch.inf).all()) and bool((margin[1::2] <= 0).all())
    assert bool((radius[::2] >= low[::2]).all()) and bool((radius[::2] < distance[::2]).all())
    unmoved, _ = largest_radius(bound, x, y, full(40, 0.0), full(40, 1.0), rounds=0)
    assert bool((unmoved == 0).all())
    for bad in ((full(40, 0.2), full(40, 0.1)), (full(40, 0.0), full(40, torch.inf)), (full(40, -1.0), full(40, 1.0))):
        with pytest.raises(BadInput):
            largest_radius(bound, x, y, *bad)


@pytest.mark.parametrize("radius", [False, True])
def test_the_batch_size_does_not_change_a_bit(radius: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 50), nn.ReLU(), nn.Linear(50, 4))
    x = torch.rand(50, 1, 12, 12)
    y = module(x).argmax(1)
    y[::7] = (y[::7] + 1) % 4
    whole = certify_images(IBP(), module, x, y, threat="linf:0.001", radius=radius)
    assert 0 < int((whole.radius >= 0).sum()) < 43 or radius
    for size in (1, 7, 16, 33, "auto"):
        part = certify_images(IBP(), module, x, y, threat="linf:0.001", radius=radius, batch_size=size)  # type: ignore[arg-type]
        assert torch.equal(part.radius, whole.radius) and torch.equal(part.margin, whole.margin)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    shuffled = certify_images(IBP(), module, x[order], y[order], threat="linf:0.001", radius=radius, batch_size=7)
    assert torch.equal(shuffled.radius, whole.radius[order]) and torch.equal(shuffled.margin, whole.margin[order])


def test_clean_errors_ties_and_nan_are_certified_nowhere() -> None:
    module, x, y = linear()
    wrong = certify_images(IBP(), module, x, (y + 1) % 3, threat="linf:0")
    assert bool((wrong.radius == -torch.inf).all()) and bool((wrong.margin == -torch.inf).all())
    with torch.no_grad():
        module[1].weight.zero_()  # type: ignore[index, operator]
    assert bool((certify_images(IBP(), module, x, y, threat="linf:0").radius == -torch.inf).all())
    with torch.no_grad():
        module[1].bias.copy_(torch.tensor([torch.nan, 1.0, 2.0]))  # type: ignore[index, operator]
    assert bool((certify_images(IBP(), module, x, y, threat="linf:0").radius == -torch.inf).all())


def test_a_budget_of_zero_certifies_the_image_itself() -> None:
    module, x, y = linear()
    assert bool((certify_images(IBP(), module, x, y, threat="linf:0").radius == 0).all())


def test_bad_input_is_one_clear_line() -> None:
    module, x, y = linear()
    cases = [
        (lambda: certify_images(IBP(), module, x * 3, y, threat="linf:0.1"), "expected"),
        (lambda: certify_images(IBP(), module, x, y[:3], threat="linf:0.1"), "labels"),
        (lambda: certify_images(IBP(), module, x, None, threat="linf:0.1"), "labels"),  # type: ignore[arg-type]
        (lambda: certify_images(IBP(), module, x, y, threat="linf:-0.1"), "negative"),
        (lambda: certify_images(IBP(), module, x, y, threat="linf:0.1", batch_size=0), "batch size"),
        (lambda: certify_images(IBP(), 7, x, y, threat="linf:0.1"), "no model"),
        (lambda: certify_images(IBP(), nn.Sequential(nn.Flatten(), nn.Mish(), nn.Linear(16, 3)), x, y, threat="linf:0.1"), "Mish"),
        (lambda: prove(lambda a, b, c: b, x, y, full(40, -0.1)), "budgets"),
        (lambda: prove(lambda a, b, c: b, x, y, full(40, torch.nan)), "budgets"),
        (lambda: prove(lambda a, b, c: b, x, y, full(3, 0.1)), "budgets"),
    ]
    for call, word in cases:
        with pytest.raises(BadInput, match=word) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_no_samples_are_no_work() -> None:
    bound = Fixed(torch.ones(1))
    proven, margin = prove(bound, numbered(0), torch.zeros(0).long(), full(0, 0.1))
    assert len(proven) == len(margin) == 0 and bound.calls == []

"""Norms that attacks compute many times: quick ones, as good as exact ones."""

from __future__ import annotations

import pytest
import torch

from robustkit.threats.norms import inner, norm64, shorten_

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 224, 224), (1, 1, 1009), (2, 3, 5)]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quick_norms_are_exact_to_seven_digits(shape: tuple[int, ...], order: int) -> None:
    p = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1, 1e3]).view(3, 1, 1, 1)
    exact = p.double().flatten(1).abs().pow(order).sum(1).pow(1 / order)
    torch.testing.assert_close(norm64(p, order), exact, rtol=1e-6, atol=0)
    assert norm64(p[:0], order).shape == (0,)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_too_long_is_shortened_once_and_what_is_not_stays(shape: tuple[int, ...]) -> None:
    p = torch.randn(64, *shape, generator=torch.Generator().manual_seed(1))
    norm = p.double().flatten(1).norm(dim=1)
    eps = norm * torch.linspace(0.5, 1.5, 64)
    eps[0] = 0
    most, short = inner(eps, p[0].numel(), 2), shorten_(p.clone(), eps)
    found = short.double().flatten(1).norm(dim=1)
    assert bool((found <= eps).all())
    assert torch.equal(short[norm < most * 0.999999], p[norm < most * 0.999999])
    torch.testing.assert_close(found[norm > most], most[norm > most], rtol=1e-6, atol=1e-30)
    assert torch.equal(shorten_(short.clone(), eps), short)

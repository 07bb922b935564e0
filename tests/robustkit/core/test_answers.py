"""When two answers to the same image are the same but for rounding."""

from __future__ import annotations

import pytest
import torch

from robustkit.core.answers import Answers, apart

INF = torch.inf


def test_equal_infinities_and_not_a_number_are_equal() -> None:
    same = torch.tensor([[INF, -INF, torch.nan, 1.0]])
    assert apart(same, same.clone()).tolist() == [[0.0, 0.0, 0.0, 0.0]]
    other = torch.tensor([[-INF, 0.0, 1.0, 1.5]])
    assert apart(same, other).tolist() == [[INF, INF, INF, 0.5]]


@pytest.mark.parametrize("masked", [-INF, -1e9, -1e4])
def test_masked_classes_hide_no_change_and_make_none(masked: float) -> None:
    logits = torch.tensor([[1.0, 0.0, masked], [0.0, 2.0, masked]])
    answers = Answers(logits)
    for same in (logits, logits + torch.tensor([1e-7, 0.0, 0.0])):
        assert not bool(answers.decided_otherwise(same).any()) and not bool(answers.moved(same, 0.01).any())
    other = torch.tensor([[0.2, 0.3, masked], [0.0, 1.5, masked]])
    assert answers.decided_otherwise(other).tolist() == [True, False]
    assert answers.moved(other, 0.01).tolist() == [True, True]


def test_ties_are_no_decision() -> None:
    answers = Answers(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.5, 0.5 + 1e-7]]))
    tied = torch.tensor([[0.5, 0.5], [1.0, 1.0], [0.5, 0.5]])
    assert answers.decided_otherwise(tied).tolist() == [True, False, False]  # the last by rounding only
    assert answers.decided_otherwise(torch.full((3, 2), torch.nan)).tolist() == [True, False, True]


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-6, 0.0), (1e6, 0.0), (1.0, 100.0)])
def test_measured_against_the_gaps_that_a_model_has(scale: float, shift: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(64, 10)
    answers = Answers(logits * scale + shift)
    assert not bool(answers.decided_otherwise((logits + 1e-5 * torch.randn(64, 10)) * scale + shift).any())
    assert not bool(answers.moved((logits + 1e-5 * torch.randn(64, 10)) * scale + shift, 0.01).any())
    assert bool(answers.moved((logits + 0.1 * torch.randn(64, 10)) * scale + shift, 0.01).any())
    assert int(answers.decided_otherwise(logits.roll(1, 1) * scale + shift).sum()) == 64

"""Noise samplers: their distribution, the cosine subspace against scipy, and keys."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy.fft
import scipy.stats
import torch

from robustkit import streams
from robustkit.attacks.sampling import (
    Gaussian,
    LowFrequency,
    around,
    at_step,
    cosines,
    from_spectrum,
    normal,
    sampler,
    sampler_spec,
    uniform,
)
from robustkit.errors import BadInput

CPU = torch.device("cpu")


def keys(count: int, purpose: str = "noise") -> torch.Tensor:
    return streams.row_keys(0, purpose, torch.arange(count))


def test_normal_numbers_are_normal() -> None:
    drawn = normal(keys(20), 5, (1000,)).double().flatten().numpy()
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.std() - 1) < 0.01
    assert scipy.stats.kstest(drawn, "norm").pvalue > 1e-3
    assert abs(scipy.stats.kurtosis(drawn)) < 0.06
    pairs = np.corrcoef(drawn[:-1], drawn[1:])[0, 1]
    assert abs(pairs) < 0.01


def test_uniform_numbers_are_uniform() -> None:
    drawn = uniform(keys(20), (5000,)).double().flatten().numpy()
    assert -1 < drawn.min() < -0.999 < 0.999 < drawn.max() < 1
    assert scipy.stats.kstest((drawn + 1) / 2, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("given", ["gaussian", "low-frequency:1/4"])
def test_a_row_draws_the_same_in_any_company(given: str) -> None:
    many, made = keys(7), sampler(given)
    whole = made.draw(many, 6, (3, 12, 8))
    assert whole.shape == (7, 6, 3, 12, 8)
    for i in (0, 3, 6):
        assert torch.equal(made.draw(many[i : i + 1], 6, (3, 12, 8))[0], whole[i])


def test_steps_draw_different_numbers() -> None:
    one = keys(1).expand(4)
    drawn = normal(at_step(one, torch.arange(4)), 2, (1000,)).flatten(1).double().numpy()
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.1
    jumped = streams.bits(at_step(one[:1], torch.tensor([2])), 5)
    far = 3 * 2**32  # the same numbers as so far down the row's own stream
    start = (int(one[0]) + far * streams._GOLDEN + 2**63) % 2**64 - 2**63
    assert torch.equal(jumped, streams.bits(torch.tensor([start]), 5))


@pytest.mark.parametrize(("length", "kept"), [(28, 7), (28, 28), (9, 4), (5, 1)])
def test_cosines_are_scipys_and_orthonormal(length: int, kept: int) -> None:
    made = cosines(length, kept, CPU).double()
    assert torch.allclose(made.t() @ made, torch.eye(kept, dtype=torch.float64), atol=1e-6)
    theirs = scipy.fft.idct(np.eye(length), norm="ortho", axis=0)[:, :kept]
    assert np.abs(made.numpy() - theirs).max() < 1e-6


def test_images_are_scipys_inverse_transform() -> None:
    weights = normal(keys(3), 1, (2, 7, 5))[:, 0]
    spectrum = np.zeros((3, 2, 28, 20))
    spectrum[:, :, :7, :5] = weights.numpy()
    theirs = scipy.fft.idctn(spectrum, axes=(2, 3), norm="ortho")
    assert np.abs(from_spectrum(weights, (2, 28, 20)).numpy() - theirs).max() < 1e-5


def test_low_frequency_noise_has_nothing_but_low_frequencies() -> None:
    made = LowFrequency(Fraction(1, 4))
    noise = made.draw(keys(200), 4, (3, 32, 16)).double()
    spectrum = scipy.fft.dctn(noise.numpy(), axes=(3, 4), norm="ortho")
    assert made.sides((3, 32, 16)) == (8, 4)
    assert made.free((3, 32, 16)) == 96
    kept = spectrum[..., :8, :4].copy()
    spectrum[..., :8, :4] = 0
    assert np.abs(spectrum).max() < 1e-5
    assert abs(kept.var() - 1) < 0.02
    assert np.abs(kept.reshape(800, 96).var(0) - 1).max() < 0.25
    assert abs(float(noise.square().flatten(2).sum(2).mean()) / 96 - 1) < 0.02


def test_the_whole_spectrum_is_plain_noise() -> None:
    noise = LowFrequency(Fraction(1)).draw(keys(60), 2, (1, 10, 10)).flatten(1).double()
    assert scipy.stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert LowFrequency(Fraction(1, 100)).draw(keys(1), 1, (1, 10, 10)).std() < 1e-6  # at least the constant


def test_images_of_noise_do_not_resemble_one_another() -> None:
    """They are parts of one bank: no two of 20 000 begin at the same place more often than chance has it, shifted ones are orthogonal."""
    drawn = normal(keys(20), 1000, (16, 16)).flatten(0, 1).flatten(1)
    same = len(drawn) - len(drawn.unique(dim=0))
    assert scipy.stats.poisson.cdf(same, 20_000**2 / 2 / 2**20) < 0.9999
    alike = torch.nn.functional.normalize(drawn[:2000].double())
    alike = (alike @ alike.t() - torch.eye(2000)).abs()
    assert float((alike < 0.99).double().mean()) > 0.99999
    assert float(alike[alike < 0.99].square().mean()) == pytest.approx(1 / 256, rel=0.05)


def test_points_come_in_opposite_pairs() -> None:
    p, noise, length = torch.rand(3, 1, 4, 4), Gaussian().draw(keys(3), 5, (1, 4, 4)), torch.tensor([0.5, 1, 0])
    points = around(p, noise, length)
    step = length.view(3, 1, 1, 1, 1) * noise
    assert torch.equal(points[:, :5], p[:, None] + step)
    assert torch.equal(points[:, 5:], p[:, None] - step)


def test_specifications() -> None:
    assert sampler("low-frequency:1/8") == LowFrequency(Fraction(1, 8)) == sampler("low-frequency:ratio=0.125")
    assert sampler("low-frequency") == LowFrequency(Fraction(1, 4))
    assert sampler_spec("low-frequency:1/8") == sampler_spec(LowFrequency(Fraction(1, 8)))
    for wrong in ("gausian", "low-frequency:0", "low-frequency:2", "gaussian:1"):
        with pytest.raises(BadInput):
            sampler(wrong)

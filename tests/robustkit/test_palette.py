"""The colours of figures and pages: apart for every eye, and in contrast with what is behind them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from robustkit.report import palette


def luminance(colour: str) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def linear(colour: str) -> np.ndarray[Any, Any]:
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def oklab(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    cones = np.array(
        [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566], [0.0883024619, 0.2817188376, 0.6299787005]]
    )
    final = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.asarray(final @ np.cbrt(cones @ values))


VISION = {
    "usual": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}
"""Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB."""


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK, palette.TERMINAL], ids=["light", "dark", "terminal"])
def test_states_stay_apart_for_every_eye(colours: dict[str, str], vision: str) -> None:
    seen = {state: oklab(np.clip(VISION[vision] @ linear(colours[state]), 0, 1)) for state in palette.STATES}
    for one, other in itertools.combinations(palette.STATES, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 0.11, (one, other)


def test_colours_contrast_with_their_background() -> None:
    for colours, runs in ((palette.LIGHT, palette.RUNS_LIGHT), (palette.DARK, palette.RUNS_DARK)):
        for background in ("paper", "panel"):
            assert all(contrast(colours[text], colours[background]) >= 4.5 for text in ("ink", "soft"))
        assert all(contrast(colour, colours["paper"]) >= 3 for colour in (*runs, *(colours[state] for state in palette.STATES)))
    for background in ("#000000", "#ffffff"):
        assert all(contrast(colour, background) >= 3 for colour in palette.TERMINAL.values())

"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (MNIST, weights trained by others); skips where it is absent."""
    named = os.environ.get("ROBUSTKIT_DATA")
    place = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (place / "mnist").is_dir():
        pytest.skip(f"real data is not at {place}: set ROBUSTKIT_DATA to its folder")
    return place

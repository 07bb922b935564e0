"""Bundled models trained again with another seed, by the commands that made them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from published import Row

from robustkit.errors import RobustkitError
from robustkit.models.load import ZOO
from robustkit.models.weights import read_checkpoint

SEED = 1
_BUNDLED = re.compile(r"zoo:([\w.-]+)")


def bundled(row: Row) -> list[str]:
    """The bundled models that a row needs."""
    return _BUNDLED.findall(row.model)


def trained_again(row: Row, folder: Path) -> Row:
    """The same row about the models in `folder`."""
    return replace(row, model=_BUNDLED.sub(lambda found: str(folder / f"{found[1]}.safetensors"), row.model))


def weights(row: Row) -> list[Path]:
    """The files of the models in a row."""
    if bundled(row):
        return [ZOO / f"{name}.safetensors" for name in bundled(row)]
    return [Path(found) for found in re.findall(r"[^():,]+\.safetensors", row.model)]


def command(name: str, out: Path, seed: int = SEED) -> list[str]:
    """What trains a bundled model again: the arguments of `robustkit` that its file holds, with another seed."""
    words = shlex.split(read_checkpoint(ZOO / f"{name}.safetensors").metadata["command"])[1:]
    words[words.index("--seed") + 1], words[words.index("--out") + 1] = str(seed), str(out)
    return [*words, "--no-evaluation"]


def train(name: str, folder: Path, options: Sequence[str]) -> None:
    """Train a bundled model again into `folder`, unless it is there; raises RobustkitError with what the training says."""
    out = folder / f"{name}.safetensors"
    if out.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "robustkit", *command(name, out), *options]
    print(shlex.join(["robustkit", *words[3:]]), file=sys.stderr, flush=True)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RobustkitError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1].removeprefix("robustkit: "))

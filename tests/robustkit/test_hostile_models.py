"""Model files of strangers: whatever their metadata claim, one clear line, and nothing is allocated for it."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import torch
from damage import ODD, flip

from robustkit.errors import BadInput, RobustkitError
from robustkit.models import load_model
from robustkit.models.weights import pack, read_checkpoint, save_model

TEXT = "conv(1,2,3)-relu-flatten-linear(72,10)"
GOOD = {"architecture": TEXT, "input": "1x8x8 in [0,1]", "classes": "10", "mean": "0.5", "std": "0.25"}


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    from robustkit.models.architecture import build

    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(build(TEXT), path, architecture=TEXT, input_shape=(1, 8, 8), classes=10)
    return dict(read_checkpoint(path).tensors)


def load(path: Path) -> None:
    found = load_model(str(path))
    found.check(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
    found(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"classes": "1" + "0" * 60}, "classes"),
        ({"classes": "1" + "0" * 60, "input": None}, "classes"),
        ({"classes": "9" * 5000}, "classes"),
        ({"classes": "٣"}, "classes"),
        ({"classes": "1", "input": None}, "classes"),
        ({"mean": "nan"}, "mean"),
        ({"std": "0"}, "std"),
        ({"std": "1e-320"}, "std"),
        ({"mean": "1e400"}, "mean"),
        ({"mean": ",".join(["0.5"] * 100_000)}, "mean"),
        ({"input": "999999x999999x999999 in [0,1]"}, "architecture"),
        ({"input": "x" * 100_000}, "input"),
        ({"architecture": "-".join(["relu"] * 100_000)}, "architecture"),
        ({"architecture": "res(" * 30 + "relu|" + ")" * 30}, "architecture"),
        ({"architecture": "flatten-linear(64,999999999)"}, "model.safetensors|architecture"),
        ({"architecture": "flatten-linear(64,999999999)", "input": None, "classes": None}, "model.safetensors|architecture"),
        ({"architecture": "abs(999999999,8)"}, "classes"),
        ({"architecture": "conv(1,999999999,999999999)-flatten"}, "model.safetensors|architecture"),
        ({"architecture": "leakyrelu(nan)-flatten-linear(64,10)"}, "finite"),
        ({"architecture": "zoo-arch:mlp:channels=1" + "0" * 60}, "model.safetensors|architecture"),
        ({"architecture": "zoo-arch:mlp:hidden=[1" + "0" * 60 + "]"}, "model.safetensors|architecture"),
    ],
)
def test_metadata_that_cannot_be_meant(tmp_path: Path, tensors: dict[str, torch.Tensor], change: dict[str, str | None], told: str) -> None:
    metadata = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack(tensors, metadata))
    with pytest.raises(BadInput, match=told) as caught:
        load(path)
    assert len(str(caught.value)) < 2000


def test_damaged_and_odd_model_files_never_end_in_a_traceback(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    draw, path, refused = random.Random(0), tmp_path / "model.safetensors", 0
    for _ in range(150):
        metadata = dict(GOOD)
        if draw.random() < 0.5:
            key, value = draw.choice([*GOOD]), draw.choice(ODD)
            metadata[key] = value if isinstance(value, str) and value.isprintable() else json.dumps(value)
        path.write_bytes(pack(tensors, metadata))
        if draw.random() < 0.6:
            flip(path, draw)
        try:
            load(path)
        except RobustkitError:
            refused += 1
    assert refused > 50


def test_a_model_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with (tmp_path / "sparse.safetensors").open("wb") as file:
        file.write((2).to_bytes(8, "little") + b"{}")
        file.truncate(1 << 42)
    for name, told in (("pipe", "regular"), ("sparse", "at most")):
        with pytest.raises(BadInput, match=told):
            load_model(str(tmp_path / f"{name}.safetensors"))

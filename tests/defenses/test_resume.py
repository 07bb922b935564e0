"""Whatever ends a training, the same call goes on and ends with the same weights, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustkit
from robustkit.defenses import Minibatch, Standard
from robustkit.defenses.checkpoint import Checkpoint
from robustkit.defenses.recipe import Objective
from robustkit.errors import BadInput
from robustkit.models.weights import pack, read_checkpoint

Quick = Callable[..., Any]

PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from robustkit.defenses import train
found = train("pgd:eps=0.1,steps=2,epochs=40,batch=64,shift=1", "digits:n=256", out=sys.argv[1], save_every=0.0)
print(found.resumed)
"""
STEPS = 160


def start(out: Path) -> subprocess.Popen[str]:
    home = str(Path(robustkit.__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([home, *sys.path])}
    command = [sys.executable, "-c", PROGRAM, str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=out.parent)


def steps_done(checkpoint: Path) -> int:
    return int(read_checkpoint(checkpoint).metadata["step"]) if checkpoint.exists() else -1


def kill_after(out: Path, step: int) -> None:
    """Start the training and `kill -9` it once `step` steps are in the checkpoint."""
    process, checkpoint = start(out), out.with_name(out.name + ".checkpoint")
    while steps_done(checkpoint) < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()


def test_killed_twice_it_ends_with_the_same_file(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole" / "model.safetensors", tmp_path / "broken" / "model.safetensors"
    whole.parent.mkdir()
    broken.parent.mkdir()
    uninterrupted = start(whole)
    kill_after(broken, 10)
    kill_after(broken, 60)
    last = start(broken)
    out, err = last.communicate()
    assert last.returncode == 0, err
    assert err == "", "no bar is drawn where stderr is no terminal"
    assert 60 <= int(out) < STEPS
    out, err = uninterrupted.communicate()
    assert (uninterrupted.returncode, out.strip()) == (0, "0"), err
    assert broken.read_bytes() == whole.read_bytes()
    assert [file.name for file in broken.parent.iterdir()] == ["model.safetensors"]


@dataclass(frozen=True)
class Interrupted(Standard):
    """Raises at step `at`, as Ctrl-C or a fault would."""

    at: int = 0
    fault: type[BaseException] = KeyboardInterrupt

    @property
    def spec(self) -> Any:
        return Standard(self.epochs, self.batch, self.lr, self.shift).spec

    def bind(self, network: nn.Module) -> Objective:
        loss, calls = super().bind(network), []

        def counted(batch: Minibatch) -> Tensor:
            calls.append(batch)
            if len(calls) > self.at:
                raise self.fault("stop here")
            return loss(batch)

        return counted


def test_an_interrupt_saves_first(quick: Quick, tmp_path: Path) -> None:
    whole = quick("standard:epochs=4", "whole/model.safetensors")
    with pytest.raises(KeyboardInterrupt):
        quick(Interrupted(epochs=4, at=5))
    assert steps_done(tmp_path / "model.safetensors.checkpoint") == 5
    again = quick("standard:epochs=4")
    assert again.resumed == 5
    assert again.path.read_bytes() == whole.path.read_bytes()
    assert not (tmp_path / "model.safetensors.checkpoint").exists()


def test_a_fault_leaves_the_checkpoint(quick: Quick, tmp_path: Path) -> None:
    whole = quick("standard:epochs=4", "whole/model.safetensors")
    with pytest.raises(RuntimeError, match="stop here"):
        quick(Interrupted(epochs=4, at=5, fault=RuntimeError), save_every=0)
    again = quick("standard:epochs=4")
    assert again.resumed == 5
    assert again.path.read_bytes() == whole.path.read_bytes()


def test_buffers_are_part_of_the_state(quick: Quick) -> None:
    arch = "conv(1,4,3,s2)-bn(4)-relu-dropout(0.2)-flatten-linear(36,10)"
    whole = quick("standard:epochs=3", "whole/model.safetensors", arch=arch)
    with pytest.raises(KeyboardInterrupt):
        quick(Interrupted(epochs=3, at=3), arch=arch)
    assert quick("standard:epochs=3", arch=arch).path.read_bytes() == whole.path.read_bytes()


def test_killed_between_the_file_and_the_clearing_up(quick: Quick, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        quick(Interrupted(epochs=1, at=1))
    left = tmp_path / "model.safetensors.checkpoint"
    shutil.copy(left, tmp_path / "copy")
    first = quick("standard:epochs=1")
    shutil.move(tmp_path / "copy", left)
    assert quick("standard:epochs=1").metadata == first.metadata
    assert not left.exists()


def test_a_checkpoint_of_another_training_is_refused(quick: Quick, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        quick(Interrupted(epochs=4, at=3))
    before = (tmp_path / "model.safetensors.checkpoint").read_bytes()
    with pytest.raises(BadInput) as caught:
        quick("standard:epochs=4,lr=0.001", seed=1)
    said = str(caught.value)
    assert "recipe is standard:epochs=4,batch=128,lr=0.005,shift=0 there, standard:epochs=4,batch=128,lr=0.001,shift=0 here" in said
    assert "seed is 0 there, 1 here" in said
    assert "architecture" not in said
    assert "delete it to start afresh" in said
    assert (tmp_path / "model.safetensors.checkpoint").read_bytes() == before


def test_a_checkpoint_without_a_step_is_nobodys(quick: Quick, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        quick(Interrupted(epochs=4, at=0))
    assert steps_done(tmp_path / "model.safetensors.checkpoint") == 0
    assert quick("standard:epochs=1", seed=1).resumed == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"<html>", "HTML"), (b"\x80\x04pickled", "pickle"), (pack({"a": torch.zeros(1)}, {}), "no checkpoint of a training")],
)
def test_a_foreign_checkpoint_is_refused(quick: Quick, tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "model.safetensors.checkpoint").write_bytes(content)
    with pytest.raises(BadInput, match=says):
        quick("standard:epochs=1")


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path: Path) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, Tensor]:
        network = nn.Linear(3, 2)
        return network, torch.optim.Adam(network.parameters(), lr=0.1), torch.zeros(2, dtype=torch.float64)

    checkpoint = Checkpoint(tmp_path / "x.checkpoint", {"seed": "0"})
    network, optimizer, losses = fresh()
    assert checkpoint.load(network, optimizer, losses) == 0
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    losses += 7
    checkpoint.save(9, network, optimizer, losses)
    others = fresh()
    assert checkpoint.load(*others) == 9
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), others[0].parameters()))
    mine, theirs = optimizer.state_dict()["state"], others[1].state_dict()["state"]
    assert all(torch.equal(mine[i][key], theirs[i][key]) for i in mine for key in mine[i])
    assert others[2].tolist() == [7, 7]

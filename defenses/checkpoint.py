"""What makes training survive `kill -9`: the whole state of it in one file, replaced atomically.

The file is safetensors: tensors of the weights, the optimiser and the running loss, and in its
metadata the step and the task, so that no other task goes on from it.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robustkit.core.files import sweep, write_atomic
from robustkit.errors import BadInput, RobustkitError
from robustkit.models.weights import pack, read_checkpoint

FORMAT = "robustkit-training-1"


class Unsaved(RobustkitError):
    """A checkpoint cannot be written; what was saved before is still there."""

    exit_code = 4


@dataclass(frozen=True)
class Checkpoint:
    """The file beside the model to be, and the task (names to texts) it belongs to."""

    path: Path
    task: Mapping[str, str]

    def save(self, step: int, network: nn.Module, optimizer: torch.optim.Optimizer, losses: Tensor) -> None:
        """Write the state after `step` steps, or leave the file as it was; raises Unsaved."""
        tensors = {f"network.{name}": value for name, value in network.state_dict().items()} | {"losses": losses}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
        metadata = {"format": FORMAT, "step": str(step), "task": json.dumps(dict(self.task))}
        self._replace(pack(tensors, metadata | {"sha256": _seal(tensors, metadata)}))

    def load(self, network: nn.Module, optimizer: torch.optim.Optimizer, losses: Tensor) -> int:
        """Put the saved state into network, optimizer and losses; returns the steps done, 0 without a file.

        Raises BadInput when the file belongs to another task (naming what differs) or is damaged.
        One that holds no step yet is nobody's.
        """
        if not self.path.exists():
            return 0
        found = read_checkpoint(self.path)
        if found.metadata.get("format") != FORMAT:
            raise BadInput(f"{self.path} is no checkpoint of a training: move it away or choose another --out")
        told = {key: found.metadata.get(key, "") for key in ("format", "step", "task")}
        if found.metadata.get("sha256") != _seal(found.tensors, told):
            raise BadInput(f"{self.path} is damaged or has no checksum, as older ones: delete it to start afresh, or choose another --out")
        if found.metadata["step"] == "0":
            return 0
        refuse_other(self.path, json.loads(found.metadata["task"]), self.task, "delete it to start afresh")
        tensors = {name: value.clone() for name, value in found.tensors.items()}
        network.load_state_dict({name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")})
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, entry = name.split(".", 2)
                state.setdefault(int(number), {})[entry] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        losses.copy_(tensors["losses"])
        return int(found.metadata["step"])

    def remove(self) -> None:
        """Delete the file: the model is finished."""
        self.path.unlink(missing_ok=True)

    def _replace(self, raw: bytes) -> None:
        try:
            sweep(self.path.parent, f".{glob.escape(self.path.name)}.*.tmp")
            write_atomic(self.path, raw)
        except OSError as problem:
            reason = problem.strerror or str(problem)
            raise Unsaved(f"cannot write {self.path}: {reason}: make room; the same command goes on where it was") from problem


def _seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """sha256 of everything that a training goes on from."""
    made = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        made.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        made.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()


def refuse_other(path: Path, theirs: Mapping[str, str], ours: Mapping[str, str], cure: str) -> None:
    """Raises BadInput that names the differing fields unless a file's task is ours."""
    differing = [f"{key} is {theirs.get(key, 'absent')} there, {value} here" for key, value in ours.items() if theirs.get(key) != value]
    if differing:
        raise BadInput(f"{path} belongs to another training ({'; '.join(differing)}): choose another --out, or {cure}")

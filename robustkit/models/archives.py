"""torch.export and TorchScript archives. Loading one can run code: callers have been asked first."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.errors import BadInput
from robustkit.numerics import pad_rows

Shape = tuple[int, int, int]


class Archived(nn.Module):
    """A loaded graph, which has no train mode of its own, fed in batches of the size it was made for.

    Args:
        graph: maps (N,C,H,W) to (N,K), or only (batch,C,H,W) where `batch` is given.
        batch: the fixed batch size the graph was exported with, None where any will do.
    """

    def __init__(self, graph: nn.Module, batch: int | None = None) -> None:
        super().__init__()
        self.graph, self.batch = graph, batch
        self.training = False
        for parameter in graph.parameters():
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Archived:
        """Stays as exported: exported graphs refuse to change mode."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Archived:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, from copying an exported graph
            return Archived(copy.deepcopy(self.graph, memo), self.batch)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,K) for any N."""
        if self.batch is None or len(x) == 0:
            out: Tensor = self.graph(x)
            return out
        parts = [self.graph(pad_rows(part, self.batch))[: len(part)] for part in torch.split(x, self.batch)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def exported(raw: bytes, device: str | torch.device) -> tuple[nn.Module, Shape | None]:
    """The network of a .pt2 archive on a device, and the (C,H,W) it was exported for. Raises BadInput."""
    program = torch.export.load(io.BytesIO(raw))
    names = program.graph_signature.user_inputs
    inputs = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(inputs) != 1:
        raise BadInput(f"the exported program takes {len(inputs)} inputs: expected one, images (N,C,H,W)")
    shape = tuple(inputs[0].meta["val"].shape)
    if len(shape) != 4:
        raise BadInput(f"the exported program takes inputs of {len(shape)} dimensions: expected images (N,C,H,W)")
    batch = shape[0] if isinstance(shape[0], int) else None
    fixed = all(isinstance(size, int) for size in shape[1:])
    wanted = torch.device("cuda" if str(device) == "auto" and torch.cuda.is_available() else "cpu" if str(device) == "auto" else device)
    if wanted.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, str(wanted))
    return Archived(program.module(), batch), (int(shape[1]), int(shape[2]), int(shape[3])) if fixed else None


def torchscript(raw: bytes, device: str | torch.device) -> tuple[nn.Module, Shape | None]:
    """The network of a TorchScript archive; moved to its device by the Classifier."""
    load: Any = torch.jit.load
    return Archived(load(io.BytesIO(raw), map_location="cpu").eval()), None

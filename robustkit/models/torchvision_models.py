"""torchvision:NAME, randomly initialised or with weights from a safetensors file; nothing is downloaded."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from robustkit.classifier import Classifier
from robustkit.errors import BadInput, Missing
from robustkit.filetypes import existing
from robustkit.models.architecture import seeded
from robustkit.models.weights import fill, read_checkpoint, state_digest
from robustkit.spec import Spec, build, canonical, parse
from robustkit.torchvision_compat import torchvision


@dataclass(frozen=True)
class TorchvisionOptions:
    """torchvision:NAME,classes=1000,weights=FILE,seed=0,mean=[...],std=[...]"""

    name: str
    classes: int = 1000
    weights: str | None = None
    """A safetensors file with torchvision's own keys; random weights without it."""
    seed: int = 0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    positional: ClassVar[tuple[str, ...]] = ("name",)

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise BadInput(f"classes = {self.classes}: expected at least 2")
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (len(values) not in (1, 3) or (key == "std" and min(values) <= 0)):
                raise BadInput(f"{key} needs 1 or 3 values{', above 0' if key == 'std' else ''}")


def torchvision_model(text: str, device: str | torch.device) -> Classifier:
    """The Classifier for what follows `torchvision:`, NAME[,option=...] or NAME:option=...; raises BadInput."""
    name, _, rest = text.partition(":") if "," not in text.partition(":")[0] else text.partition(",")
    options = build(TorchvisionOptions, parse(f"torchvision:{name},{rest}" if rest else f"torchvision:{name}"), "model")
    models = torchvision().models
    known = models.list_models(module=models)
    if options.name not in known:
        near = difflib.get_close_matches(options.name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise BadInput(f"unknown torchvision model {options.name!r}: {hint}torchvision.models.list_models() names them all")
    net = _network(models, options)
    metadata = {"source": f"torchvision {torchvision().__version__}", "weights": f"random, seed {options.seed}"}
    sha256 = None
    if options.weights is not None:
        path = existing(options.weights)
        if path is None:
            raise Missing(f"weights {options.weights!r}: there is no such file (looked from {Path.cwd()})")
        checkpoint = read_checkpoint(path)
        fill(net, checkpoint.tensors, str(path))
        sha256, metadata = checkpoint.sha256, {**metadata, **checkpoint.metadata, "weights": str(path)}
    return Classifier(
        net.eval(),
        mean=options.mean,
        std=options.std,
        classes=options.classes,
        device=device,
        spec=_canonical(options),
        sha256=sha256 or state_digest(net),
        metadata=metadata,
    )


def _canonical(options: TorchvisionOptions) -> str:
    keyed = dict(canonical(options, "torchvision").options)
    return str(Spec("torchvision", (keyed.pop("name"),), keyed))


def _network(models: Any, options: TorchvisionOptions) -> torch.nn.Module:
    try:
        with seeded(options.seed):
            made: torch.nn.Module = models.get_model(options.name, weights=None, num_classes=options.classes)
            return made
    except (TypeError, ValueError, RuntimeError) as problem:
        raise BadInput(f"torchvision:{options.name} cannot be made with {options.classes} classes: {problem}") from problem

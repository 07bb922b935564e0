"""torchvision as the rest of robustkit imports it, also where its compiled part does not load.

PyPI's torchvision is built against CUDA. Beside a CPU-only torch its extension cannot be loaded
and `import torchvision` stops at "operator torchvision::nms does not exist", because it registers
shape functions for two operators that were never defined. Their schemas are declared here first;
everything written in Python (data sets, models, transforms) then works as usual.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

from robustkit.errors import Missing

_NEEDED = ("nms", "qnms")
_declared: list[Any] = []
"""The Library objects: a schema lives only as long as its library."""


def torchvision() -> Any:
    """The torchvision module, imported once. Raises Missing where it is not installed."""
    if "torchvision" not in sys.modules:
        declare_operators()
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as problem:
        cure = "install the torchvision that belongs to your torch: pip install torchvision"
        raise Missing(f"torchvision cannot be imported ({problem}): {cure}") from problem


def declare_operators() -> None:
    """Declare the schemas torchvision needs at import, where its own extension cannot define them.

    Does nothing where torchvision is absent, where its extension loads, or the second time.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or _extension_loads(Path(found.origin).parent):
        return
    absent = [name for name in _NEEDED if not hasattr(torch.ops.torchvision, name)]
    if absent:
        make: Any = torch.library.Library
        library = make("torchvision", "FRAGMENT")
        for name in absent:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)


def _extension_loads(folder: Path) -> bool:
    """Whether torchvision's compiled operators can be loaded (and are, exactly as it does itself)."""
    operators: Any = torch.ops
    for file in sorted(folder.glob("_C.*")):
        try:
            operators.load_library(str(file))
        except (OSError, ImportError, RuntimeError):
            continue
        return True
    return False

"""robustkit: how robust is an image classifier? certified <= true <= empirical, sample by sample.

    >>> import robustkit as rk
    >>> evaluation = rk.evaluate("zoo:digits-pgd", data="digits:n=50", threat="linf:0.1")  # doctest: +SKIP

Names are loaded on first use, so that importing the package is instant.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Classifier": "robustkit.classifier",
    "Evaluation": "robustkit.engine",
    "evaluate": "robustkit.engine",
    "certify": "robustkit.engine",
    "load_data": "robustkit.data",
    "load_model": "robustkit.models",
    "load_threat": "robustkit.threats",
    "Threat": "robustkit.threats",
    "Linf": "robustkit.threats",
    "L2": "robustkit.threats",
    "L1": "robustkit.threats",
    "L0": "robustkit.threats",
    "Attack": "robustkit.methods",
    "Certifier": "robustkit.methods",
    "Result": "robustkit.methods",
    "Certificate": "robustkit.methods",
    "RobustkitError": "robustkit.errors",
    "BadInput": "robustkit.errors",
    "Missing": "robustkit.errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"robustkit has no {name!r}: it has {', '.join(_PUBLIC)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__

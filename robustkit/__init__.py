"""robustkit: how robust is an image classifier? certified <= true <= empirical, sample by sample.

    >>> import robustkit as rk
    >>> evaluation = rk.evaluate("zoo:digits-pgd", data="digits:n=50", threat="linf:0.1")  # doctest: +SKIP

Names are loaded on first use, so that importing the package is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkit.classifier import Classifier as Classifier
    from robustkit.data import load_data as load_data
    from robustkit.engine import Evaluation as Evaluation
    from robustkit.engine import certify as certify
    from robustkit.engine import evaluate as evaluate
    from robustkit.errors import BadInput as BadInput
    from robustkit.errors import Missing as Missing
    from robustkit.errors import RobustkitError as RobustkitError
    from robustkit.evaluation.verify import Verification as Verification
    from robustkit.evaluation.verify import verify as verify
    from robustkit.leaderboard import Leaderboard as Leaderboard
    from robustkit.methods import Attack as Attack
    from robustkit.methods import Certificate as Certificate
    from robustkit.methods import Certifier as Certifier
    from robustkit.methods import Result as Result
    from robustkit.models import load_model as load_model
    from robustkit.surface import Surface as Surface
    from robustkit.threats import L0 as L0
    from robustkit.threats import L1 as L1
    from robustkit.threats import L2 as L2
    from robustkit.threats import Linf as Linf
    from robustkit.threats import Threat as Threat
    from robustkit.threats import load_threat as load_threat

__version__ = "0.1.0"

_PUBLIC = {
    "Classifier": "robustkit.classifier",
    "Evaluation": "robustkit.engine",
    "evaluate": "robustkit.engine",
    "certify": "robustkit.engine",
    "verify": "robustkit.evaluation.verify",
    "Verification": "robustkit.evaluation.verify",
    "load_data": "robustkit.data",
    "load_model": "robustkit.models",
    "load_threat": "robustkit.threats",
    "Leaderboard": "robustkit.leaderboard",
    "Threat": "robustkit.threats",
    "Linf": "robustkit.threats",
    "L2": "robustkit.threats",
    "L1": "robustkit.threats",
    "L0": "robustkit.threats",
    "Attack": "robustkit.methods",
    "Certifier": "robustkit.methods",
    "Result": "robustkit.methods",
    "Certificate": "robustkit.methods",
    "Surface": "robustkit.surface",
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

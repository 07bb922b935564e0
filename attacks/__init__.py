"""Attacks, one a file. `TABLE` maps every name a user can type to its class."""

from __future__ import annotations

import importlib
from typing import Any

TABLE = {
    "fgsm": "robustkit.attacks.fgsm:FGSM",
    "bim": "robustkit.attacks.bim:BIM",
    "pgd": "robustkit.attacks.pgd:PGD",
    "apgd": "robustkit.attacks.apgd:APGD",
    "fab": "robustkit.attacks.fab:FAB",
    "square": "robustkit.attacks.square:Square",
}

__all__ = ["APGD", "BIM", "FAB", "FGSM", "PGD", "Square"]


def __getattr__(name: str) -> Any:
    for target in TABLE.values():
        module, _, attribute = target.partition(":")
        if attribute == name:
            return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"robustkit.attacks has no {name!r}: it has {', '.join(__all__)}")

"""Attacks, one a file. `TABLE` maps every name a user can type to its class."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkit.attacks.apgd import APGD as APGD
    from robustkit.attacks.bim import BIM as BIM
    from robustkit.attacks.di_fgsm import DIFGSM as DIFGSM
    from robustkit.attacks.fab import FAB as FAB
    from robustkit.attacks.fgsm import FGSM as FGSM
    from robustkit.attacks.mi_fgsm import MIFGSM as MIFGSM
    from robustkit.attacks.pgd import PGD as PGD
    from robustkit.attacks.square import Square as Square

TABLE = {
    "fgsm": "robustkit.attacks.fgsm:FGSM",
    "bim": "robustkit.attacks.bim:BIM",
    "pgd": "robustkit.attacks.pgd:PGD",
    "mi-fgsm": "robustkit.attacks.mi_fgsm:MIFGSM",
    "di-fgsm": "robustkit.attacks.di_fgsm:DIFGSM",
    "apgd": "robustkit.attacks.apgd:APGD",
    "fab": "robustkit.attacks.fab:FAB",
    "square": "robustkit.attacks.square:Square",
}

__all__ = ["APGD", "BIM", "DIFGSM", "FAB", "FGSM", "MIFGSM", "PGD", "Square"]


def __getattr__(name: str) -> Any:
    for target in TABLE.values():
        module, _, attribute = target.partition(":")
        if attribute == name:
            return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"robustkit.attacks has no {name!r}: it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "TABLE"]

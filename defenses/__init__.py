"""Defenses, one a file: the training recipe, and in time the model and its adaptive surface.

`TABLE` maps every name a user can type in `robustkit train RECIPE` to its class. One trainer
(`robustkit.defenses.trainer.train`) runs them all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkit.defenses.ibp import IntervalTraining as IntervalTraining
    from robustkit.defenses.pgd import AdversarialTraining as AdversarialTraining
    from robustkit.defenses.recipe import Minibatch as Minibatch
    from robustkit.defenses.recipe import Recipe as Recipe
    from robustkit.defenses.recipe import load_recipe as load_recipe
    from robustkit.defenses.standard import Standard as Standard
    from robustkit.defenses.trainer import Trained as Trained
    from robustkit.defenses.trainer import train as train

TABLE = {
    "standard": "robustkit.defenses.standard:Standard",
    "pgd": "robustkit.defenses.pgd:AdversarialTraining",
    "ibp": "robustkit.defenses.ibp:IntervalTraining",
}

_PUBLIC = {
    "AdversarialTraining": "robustkit.defenses.pgd",
    "IntervalTraining": "robustkit.defenses.ibp",
    "Minibatch": "robustkit.defenses.recipe",
    "Recipe": "robustkit.defenses.recipe",
    "Standard": "robustkit.defenses.standard",
    "Trained": "robustkit.defenses.trainer",
    "load_recipe": "robustkit.defenses.recipe",
    "train": "robustkit.defenses.trainer",
}

__all__ = ["TABLE", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"robustkit.defenses has no {name!r}: it has {', '.join(_PUBLIC)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__

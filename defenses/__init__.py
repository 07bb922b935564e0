"""Defenses, one a file: the training recipe, and in time the model and its adaptive surface.

`TABLE` maps every name a user can type in `robustkit train RECIPE` to its class. One trainer
(`robustkit.defenses.trainer.train`) runs them all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkit.defenses.analysis_by_synthesis import AnalysisBySynthesis as AnalysisBySynthesis
    from robustkit.defenses.binarised import Binary as Binary
    from robustkit.defenses.clean_logit_pairing import CleanLogitPairing as CleanLogitPairing
    from robustkit.defenses.crown_ibp import CrownIntervalTraining as CrownIntervalTraining
    from robustkit.defenses.deep_knn import DeepKNN as DeepKNN
    from robustkit.defenses.fortified import Fortified as Fortified
    from robustkit.defenses.ibp import IntervalTraining as IntervalTraining
    from robustkit.defenses.logit_pairing import LogitPairing as LogitPairing
    from robustkit.defenses.logit_squeezing import LogitSqueezing as LogitSqueezing
    from robustkit.defenses.pgd import AdversarialTraining as AdversarialTraining
    from robustkit.defenses.recipe import Minibatch as Minibatch
    from robustkit.defenses.recipe import Recipe as Recipe
    from robustkit.defenses.recipe import load_recipe as load_recipe
    from robustkit.defenses.smoothadv import SmoothAdv as SmoothAdv
    from robustkit.defenses.smoothing import GaussianTraining as GaussianTraining
    from robustkit.defenses.stability import StabilityTraining as StabilityTraining
    from robustkit.defenses.standard import Standard as Standard
    from robustkit.defenses.trades import Trades as Trades
    from robustkit.defenses.trainer import Trained as Trained
    from robustkit.defenses.trainer import train as train

TABLE = {
    "standard": "robustkit.defenses.standard:Standard",
    "pgd": "robustkit.defenses.pgd:AdversarialTraining",
    "ibp": "robustkit.defenses.ibp:IntervalTraining",
    "crown-ibp": "robustkit.defenses.crown_ibp:CrownIntervalTraining",
    "trades": "robustkit.defenses.trades:Trades",
    "logit-pairing": "robustkit.defenses.logit_pairing:LogitPairing",
    "clean-logit-pairing": "robustkit.defenses.clean_logit_pairing:CleanLogitPairing",
    "logit-squeezing": "robustkit.defenses.logit_squeezing:LogitSqueezing",
    "fortified": "robustkit.defenses.fortified:Fortified",
    "abs": "robustkit.defenses.analysis_by_synthesis:AnalysisBySynthesis",
    "smoothing": "robustkit.defenses.smoothing:GaussianTraining",
    "smoothadv": "robustkit.defenses.smoothadv:SmoothAdv",
    "stability": "robustkit.defenses.stability:StabilityTraining",
}

WRAPPERS = {
    "binary": "robustkit.defenses.binarised:Binary",
    "knn": "robustkit.defenses.deep_knn:DeepKNN",
}
"""Defenses around any trained model: what `NAME:(MODEL),option=value` may begin with."""

_PUBLIC = {
    "AdversarialTraining": "robustkit.defenses.pgd",
    "AnalysisBySynthesis": "robustkit.defenses.analysis_by_synthesis",
    "Binary": "robustkit.defenses.binarised",
    "CleanLogitPairing": "robustkit.defenses.clean_logit_pairing",
    "CrownIntervalTraining": "robustkit.defenses.crown_ibp",
    "DeepKNN": "robustkit.defenses.deep_knn",
    "Fortified": "robustkit.defenses.fortified",
    "GaussianTraining": "robustkit.defenses.smoothing",
    "IntervalTraining": "robustkit.defenses.ibp",
    "LogitPairing": "robustkit.defenses.logit_pairing",
    "LogitSqueezing": "robustkit.defenses.logit_squeezing",
    "Minibatch": "robustkit.defenses.recipe",
    "Recipe": "robustkit.defenses.recipe",
    "SmoothAdv": "robustkit.defenses.smoothadv",
    "StabilityTraining": "robustkit.defenses.stability",
    "Standard": "robustkit.defenses.standard",
    "Trades": "robustkit.defenses.trades",
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

"""Attacks, one a file. `TABLE` maps every name a user can type to its class."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkit.attacks.adef import ADef as ADef
    from robustkit.attacks.apgd import APGD as APGD
    from robustkit.attacks.apgd_l1 import APGDL1 as APGDL1
    from robustkit.attacks.bim import BIM as BIM
    from robustkit.attacks.boundary import Boundary as Boundary
    from robustkit.attacks.di_fgsm import DIFGSM as DIFGSM
    from robustkit.attacks.ensemble import Transfer as Transfer
    from robustkit.attacks.envelope import Envelope as Envelope
    from robustkit.attacks.fab import FAB as FAB
    from robustkit.attacks.fgsm import FGSM as FGSM
    from robustkit.attacks.foolbox import FoolboxAttack as FoolboxAttack
    from robustkit.attacks.guided_pgd import GuidedPGD as GuidedPGD
    from robustkit.attacks.image_walk import ImageWalk as ImageWalk
    from robustkit.attacks.latent_descent import LatentDescent as LatentDescent
    from robustkit.attacks.local_variance import LocalVariance as LocalVariance
    from robustkit.attacks.mi_fgsm import MIFGSM as MIFGSM
    from robustkit.attacks.nes import NES as NES
    from robustkit.attacks.noise import Noise as Noise
    from robustkit.attacks.pgd import PGD as PGD
    from robustkit.attacks.readout import ReadoutSquare as ReadoutSquare
    from robustkit.attacks.rotation import RotationSearch as RotationSearch
    from robustkit.attacks.second_order import SecondOrder as SecondOrder
    from robustkit.attacks.square import Square as Square
    from robustkit.attacks.stadv import StAdv as StAdv
    from robustkit.attacks.stand_in import StandIn as StandIn
    from robustkit.attacks.universal import Universal as Universal

TABLE = {
    "fgsm": "robustkit.attacks.fgsm:FGSM",
    "bim": "robustkit.attacks.bim:BIM",
    "pgd": "robustkit.attacks.pgd:PGD",
    "guided-pgd": "robustkit.attacks.guided_pgd:GuidedPGD",
    "mi-fgsm": "robustkit.attacks.mi_fgsm:MIFGSM",
    "di-fgsm": "robustkit.attacks.di_fgsm:DIFGSM",
    "apgd": "robustkit.attacks.apgd:APGD",
    "apgd-l1": "robustkit.attacks.apgd_l1:APGDL1",
    "fab": "robustkit.attacks.fab:FAB",
    "square": "robustkit.attacks.square:Square",
    "image-walk": "robustkit.attacks.image_walk:ImageWalk",
    "readout": "robustkit.attacks.readout:ReadoutSquare",
    "stand-in": "robustkit.attacks.stand_in:StandIn",
    "noise": "robustkit.attacks.noise:Noise",
    "nes": "robustkit.attacks.nes:NES",
    "boundary": "robustkit.attacks.boundary:Boundary",
    "rotation": "robustkit.attacks.rotation:RotationSearch",
    "stadv": "robustkit.attacks.stadv:StAdv",
    "adef": "robustkit.attacks.adef:ADef",
    "local-variance": "robustkit.attacks.local_variance:LocalVariance",
    "second-order": "robustkit.attacks.second_order:SecondOrder",
    "envelope": "robustkit.attacks.envelope:Envelope",
    "latent-descent": "robustkit.attacks.latent_descent:LatentDescent",
    "transfer": "robustkit.attacks.ensemble:Transfer",
    "universal": "robustkit.attacks.universal:Universal",
    "foolbox": "robustkit.attacks.foolbox:FoolboxAttack",
}

__all__ = [
    "APGD",
    "APGDL1",
    "BIM",
    "DIFGSM",
    "FAB",
    "FGSM",
    "MIFGSM",
    "NES",
    "PGD",
    "ADef",
    "Boundary",
    "Envelope",
    "FoolboxAttack",
    "GuidedPGD",
    "ImageWalk",
    "LatentDescent",
    "LocalVariance",
    "Noise",
    "ReadoutSquare",
    "RotationSearch",
    "SecondOrder",
    "Square",
    "StAdv",
    "StandIn",
    "Transfer",
    "Universal",
]


def __getattr__(name: str) -> Any:
    for target in TABLE.values():
        module, _, attribute = target.partition(":")
        if attribute == name:
            return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"robustkit.attacks has no {name!r}: it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "TABLE"]

"""The names of `foolbox:NAME`: which Foolbox classes they stand for, for which norms, and what these need to see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from robustkit.spec import Value


@dataclass(frozen=True)
class Entry:
    classes: Mapping[str, str]
    """Threat family -> name of the Foolbox class."""
    paper: str
    access: Literal["gradient", "score", "decision"] = "gradient"
    minimum: bool = True
    """Looks for the smallest change; else for one of a fixed size."""
    together: bool | str = False
    """Whether rows go their ways apart in equally many steps; or the option that must be false for it."""
    aims: Literal["either", "label", "class"] = "either"
    """Away from the label, towards a class, or either."""
    defaults: Mapping[str, Value] = field(default_factory=dict)
    needs: str = ""
    """A library that Foolbox itself does not bring."""


def _norms(pattern: str, *families: str) -> dict[str, str]:
    """{family: class name}, with the family as Foolbox spells it in place of `*`."""
    names = {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"}
    return {family: pattern.replace("*", names[family]) for family in families}


ANY = ("linf", "l2", "l1", "l0")
_BALLS = ("linf", "l2", "l1")
_BETHGE = _norms("*BrendelBethgeAttack", "l2", "l1", "l0") | {"linf": "LinfinityBrendelBethgeAttack"}
_FMN = _norms("*FMNAttack", "l2", "l1", "l0") | {"linf": "LInfFMNAttack"}
FOOLBOX = "Rauber et al. 2020"

TABLE: dict[str, Entry] = {
    "carlini-wagner": Entry(_norms("*CarliniWagnerAttack", "l2"), "Carlini & Wagner 2017", together="abort_early"),
    "ddn": Entry(_norms("DDNAttack", "l2"), "Rony et al. 2019", together=True),
    "fmn": Entry(_FMN, "Pintor et al. 2021", together="init_attack"),
    "deepfool": Entry(_norms("*DeepFoolAttack", "linf", "l2"), "Moosavi-Dezfooli et al. 2016", aims="label"),
    "ead": Entry(_norms("EADAttack", "l1"), "Chen et al. 2018", together="abort_early"),
    "brendel-bethge": Entry(_BETHGE, "Brendel et al. 2019", needs="numba"),
    "newton-fool": Entry(_norms("NewtonFoolAttack", "l2"), "Jang et al. 2017", together=True, aims="label"),
    "virtual-adversarial": Entry(
        _norms("VirtualAdversarialAttack", "l2"),
        "Miyato et al. 2016",
        minimum=False,
        together=True,
        aims="label",
        defaults={"steps": Fraction(10)},
    ),
    "fast-gradient": Entry(_norms("*FastGradientAttack", *_BALLS), "Goodfellow et al. 2015", minimum=False, together=True),
    "basic-iterative": Entry(_norms("*BasicIterativeAttack", *_BALLS), "Kurakin et al. 2017", minimum=False, together=True),
    "adam-basic-iterative": Entry(_norms("*AdamBasicIterativeAttack", *_BALLS), FOOLBOX, minimum=False, together=True),
    "momentum-iterative": Entry(_norms("*MomentumIterativeFastGradientMethod", *_BALLS), "Dong et al. 2018", minimum=False, together=True),
    "pgd": Entry(_norms("*ProjectedGradientDescentAttack", *_BALLS), "Madry et al. 2018", minimum=False, together=True),
    "adam-pgd": Entry(_norms("*AdamProjectedGradientDescentAttack", *_BALLS), FOOLBOX, minimum=False, together=True),
    "sparse-l1-descent": Entry(_norms("SparseL1DescentAttack", "l1"), "Tramer & Boneh 2019", minimum=False, together=True),
    "gen-attack": Entry(_norms("GenAttack", "linf"), "Alzantot et al. 2019", "score", minimum=False, aims="class"),
    "boundary": Entry(_norms("BoundaryAttack", "l2"), "Brendel et al. 2018", "decision"),
    "hopskipjump": Entry(_norms("HopSkipJumpAttack", "linf", "l2"), "Chen et al. 2020", "decision"),
    "pointwise": Entry(_norms("PointwiseAttack", *ANY), "Schott et al. 2019", "decision"),
    "salt-and-pepper": Entry(_norms("SaltAndPepperNoiseAttack", "l2", "l1", "l0"), FOOLBOX, "decision", together=True),
    "blended-noise": Entry(_norms("LinearSearchBlendedUniformNoiseAttack", *ANY), FOOLBOX, "decision"),
    "contrast": Entry(_norms("BinarySearchContrastReductionAttack", *ANY), FOOLBOX, "decision", together=True),
    "linear-contrast": Entry(_norms("LinearSearchContrastReductionAttack", *ANY), FOOLBOX, "decision"),
    "fixed-contrast": Entry(_norms("*ContrastReductionAttack", "l2"), FOOLBOX, "decision", minimum=False, together=True),
    "gaussian-blur": Entry(_norms("GaussianBlurAttack", *ANY), FOOLBOX, "decision"),
    "inversion": Entry(_norms("InversionAttack", *ANY), "Hosseini et al. 2017", "decision", together=True),
    "gaussian-noise": Entry(_norms("*AdditiveGaussianNoiseAttack", "l2"), FOOLBOX, "decision", minimum=False, together=True),
    "uniform-noise": Entry(_norms("*AdditiveUniformNoiseAttack", "linf", "l2"), FOOLBOX, "decision", minimum=False, together=True),
    "repeated-gaussian-noise": Entry(_norms("*RepeatedAdditiveGaussianNoiseAttack", "l2"), FOOLBOX, "decision", minimum=False),
    "repeated-uniform-noise": Entry(_norms("*RepeatedAdditiveUniformNoiseAttack", "linf", "l2"), FOOLBOX, "decision", minimum=False),
}
for _kind in ("gaussian", "uniform"):
    for _often, _infix in (("", ""), ("repeated-", "Repeated")):
        TABLE[f"{_often}clipping-aware-{_kind}-noise"] = Entry(
            _norms(f"*ClippingAware{_infix}Additive{_kind.capitalize()}NoiseAttack", "l2"),
            "Rauber & Bethge 2020",
            "decision",
            minimum=False,
            together=not _often,
        )

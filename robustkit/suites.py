"""Suites: ordered lists of stages per threat family, cheapest first."""

from __future__ import annotations

from dataclasses import dataclass

from robustkit.errors import BadInput, unknown
from robustkit.threats import Threat


@dataclass(frozen=True)
class Suite:
    """Certifiers and attacks by specification, and the attack that radius searches use."""

    certifiers: tuple[str, ...]
    attacks: tuple[str, ...]
    radius: str
    about: str
    later: tuple[str, ...] = ()
    """Certifiers that run behind the first attack, because they cost more than it does."""
    trial: bool = True
    """Whether certifiers go on after a trial only while they pay, as where attacks come behind them."""


_NORMS = ("linf", "l2")
_L1 = ("l1",)
_L0 = ("l0",)
_ROTATION = ("rotation",)
_FLOW = ("flow",)
_APGD_L1_20 = "apgd-l1:steps=20,restarts=1"
_APGD_L1_40 = "apgd-l1:steps=40,restarts=1"

SUITES: dict[str, dict[tuple[str, ...], Suite]] = {
    "quick": {
        _NORMS: Suite(("ibp",), ("fgsm", "pgd:steps=20"), "pgd:steps=20", "a first look in seconds; not strong enough to report"),
        _L1: Suite((), (_APGD_L1_20,), _APGD_L1_20, "a first look in seconds; not strong enough to report"),
        _L0: Suite((), ("pgd:steps=20",), "pgd:steps=20", "a first look in seconds; not strong enough to report"),
        _ROTATION: Suite(
            (), ("rotation:mode=random",), "rotation:mode=random", "the worst of ten random rotations and shifts; a first look"
        ),
        _FLOW: Suite((), ("pgd:steps=20",), "pgd:steps=20", "a first look in seconds; not strong enough to report"),
    },
    "standard": {
        _NORMS: Suite(
            ("ibp",),
            ("apgd:loss=ce,restarts=1", "apgd:loss=dlr-targeted,restarts=1", "fab:steps=100", "square:queries=5000"),
            "pgd:steps=40",
            "the AutoAttack recipe (APGD-CE, APGD-T, FAB-T, Square) with certificates where they pay, each on what is still open",
            later=("crown-ibp", "crown"),
        ),
        _L1: Suite(
            (),
            ("apgd-l1:loss=ce,restarts=5", "apgd-l1:loss=dlr-targeted,restarts=1", "fab:steps=100", "square:queries=5000"),
            _APGD_L1_40,
            "the AutoAttack recipe (APGD-CE, APGD-T, FAB-T, Square) with certificates where they pay, each on what is still open",
            later=("crown-ibp", "crown"),
        ),
        _L0: Suite((), ("pgd:steps=100,restarts=5", "pgd:steps=100,restarts=5,loss=margin"), "pgd:steps=40", "PGD with two losses"),
        _ROTATION: Suite(
            (),
            ("rotation:mode=grid", "pgd:steps=20,restarts=10,loss=margin"),
            "rotation:angles=11,shifts=3",
            "a grid of 31 x 5 x 5 rotations and shifts, then PGD between its points",
        ),
        _FLOW: Suite(
            (),
            ("pgd:steps=40,restarts=10", "pgd:steps=40,restarts=10,loss=margin", "stadv:steps=300", "adef:steps=50"),
            "pgd:steps=40",
            "PGD on the flow field with two losses, many restarts, then the smooth flows of stAdv and ADef",
        ),
    },
    "certify": {
        _NORMS: Suite(
            (),
            ("pgd:steps=20",),
            "pgd:steps=40",
            "the cascade: a quick attack, then ever tighter and dearer certifiers, each on what is still open",
            later=("ibp", "crown-ibp", "crown", "alpha-crown"),
            trial=False,
        ),
        _L1: Suite(
            (),
            (_APGD_L1_20,),
            _APGD_L1_40,
            "the cascade: a quick attack, then ever tighter and dearer certifiers, each on what is still open",
            later=("crown-ibp", "crown", "alpha-crown"),
            trial=False,
        ),
    },
    "rand": {
        _NORMS: Suite(
            (),
            ("apgd:loss=ce,restarts=1,eot=20", "apgd:loss=dlr,restarts=1,eot=20"),
            "pgd:steps=40,eot=20",
            "for random models: gradients averaged over 20 draws, witnesses by a vote of fresh draws",
        ),
        _L1: Suite(
            (),
            ("apgd-l1:loss=ce,restarts=1,eot=20", "apgd-l1:loss=dlr,restarts=1,eot=20"),
            "apgd-l1:steps=40,restarts=1,eot=20",
            "for random models: gradients averaged over 20 draws, witnesses by a vote of fresh draws",
        ),
    },
    "black-box": {
        (*_NORMS, *_L1): Suite((), ("square:queries=5000",), "square:queries=500", "scores only, no gradients"),
        _ROTATION: Suite((), ("rotation:mode=grid",), "rotation:angles=11,shifts=3", "a grid of rotations and shifts, decisions only"),
    },
    "full": {
        _NORMS: Suite(
            ("ibp",),
            (
                "pgd:steps=40",
                "apgd:loss=ce,restarts=5",
                "apgd:loss=dlr,restarts=5",
                "apgd:loss=dlr-targeted,restarts=2",
                "fab:steps=100,restarts=2",
                "square:queries=10000",
            ),
            "pgd:steps=100",
            "standard with more restarts and losses, several times its cost",
            later=("crown-ibp", "crown"),
        ),
        _L1: Suite(
            (),
            (
                "pgd:steps=100",
                "apgd-l1:loss=ce,restarts=10",
                "apgd-l1:loss=dlr,restarts=5",
                "apgd-l1:loss=dlr-targeted,restarts=2,targets=9",
                "fab:steps=100,restarts=2",
                "square:queries=10000",
            ),
            "apgd-l1:steps=100,restarts=1",
            "standard with more restarts and losses, several times its cost",
            later=("crown-ibp", "crown"),
        ),
        _ROTATION: Suite(
            (),
            ("rotation:mode=grid", "pgd:steps=40,restarts=20,loss=margin", "rotation:angles=61,shifts=9"),
            "rotation:mode=grid",
            "standard with a finer grid and more restarts, several times its cost",
        ),
        _FLOW: Suite(
            (),
            (
                "pgd:steps=100,restarts=20",
                "pgd:steps=100,restarts=20,loss=margin",
                "stadv:steps=500,restarts=3",
                "stadv:steps=300,tau=0.005",
                "adef:steps=100",
            ),
            "pgd:steps=100",
            "standard with more steps, restarts and losses, several times its cost",
        ),
    },
}


SIGHTLESS = ("image-walk:queries=3000", "readout:queries=2000", "stand-in")
"""What goes on where a suite's attacks are found blind: attacks that need no gradient of the model, cheapest first."""


def has_suite(name: str, threat: Threat) -> bool:
    """Whether a suite is defined for a threat family; raises BadInput for an unknown suite."""
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    return any(threat.name in families for families in SUITES[name])


def suite(name: str, threat: Threat) -> Suite:
    """The stages of a named suite for a threat family; raises BadInput."""
    if has_suite(name, threat):
        return next(found for families, found in SUITES[name].items() if threat.name in families)
    raise BadInput(f"suite {name} is not defined for threat {threat.name}: name the attacks with --attack")

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


_NORMS = ("linf", "l2")
_SPARSE = ("l1", "l0")

SUITES: dict[str, dict[tuple[str, ...], Suite]] = {
    "quick": {
        _NORMS: Suite(("ibp",), ("fgsm", "pgd:steps=20"), "pgd:steps=20", "a first look in seconds; not strong enough to report"),
        _SPARSE: Suite((), ("pgd:steps=20",), "pgd:steps=20", "a first look in seconds; not strong enough to report"),
    },
    "standard": {
        _NORMS: Suite(
            ("ibp",),
            ("apgd:loss=ce,restarts=1", "apgd:loss=dlr-targeted,restarts=1", "fab:steps=100", "square:queries=5000"),
            "pgd:steps=40",
            "the AutoAttack recipe (APGD-CE, APGD-T, FAB-T, Square) behind interval bounds, each on what is still open",
        ),
        _SPARSE: Suite((), ("pgd:steps=100,restarts=5", "pgd:steps=100,restarts=5,loss=margin"), "pgd:steps=40", "PGD with two losses"),
    },
    "black-box": {
        _NORMS: Suite((), ("square:queries=5000",), "square:queries=500", "scores only, no gradients"),
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
        )
    },
}


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

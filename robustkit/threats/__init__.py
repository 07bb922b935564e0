"""Threat families by name. `load_threat("linf:8/255")` reads one."""

from __future__ import annotations

from robustkit.errors import BadInput, unknown
from robustkit.spec import build, parse
from robustkit.threats.base import Threat
from robustkit.threats.flow import Flow
from robustkit.threats.norms import L2, Linf
from robustkit.threats.rotation import Rotation
from robustkit.threats.sparse import L0, L1

THREATS: dict[str, type[Threat]] = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0, "rotation": Rotation, "flow": Flow}


def load_threat(threat: str | Threat) -> Threat:
    """The threat a specification such as `linf:8/255` or `l2:0.5` names; raises BadInput."""
    if isinstance(threat, Threat):
        return threat
    if not isinstance(threat, str):
        raise BadInput(f"threat {threat!r}: expected a specification such as 'linf:8/255', or a Threat")
    spec = parse(threat)
    if spec.name not in THREATS:
        raise unknown("threat", spec.name, THREATS)
    return build(THREATS[spec.name], spec, "threat")


__all__ = ["L0", "L1", "L2", "THREATS", "Flow", "Linf", "Rotation", "Threat", "load_threat"]

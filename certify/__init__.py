"""Certifiers: proofs that no error lies within a ball, and the bound-propagation graph they share.

    from robustkit import Linf
    from robustkit.certify import IBP
    IBP()(model, x, y, threat=Linf("0.1")).radius

A network is traced into a small set of typed operations (`ops`), and a bound is one rule per
operation: `interval` holds the interval rules. Certified training uses the same pure,
differentiable functions on the live module:

    graph = trace(module)
    loss = cross_entropy(worst_logits(graph, x, y, eps), y)

    loss = cross_entropy(-crown_margins(graph, Region.around(x, eps), y, intermediate="ibp"), y)

A further operation needs two rules: `operation(torch_target)` says what it becomes in the graph,
`interval_rule(OpType)` how an interval goes through it; and for CROWN a third, `relaxation(OpType)`,
lines below and above it. Ops that derive from `ops.Affine` have all of them, ops that derive from
`ops.Monotone` an interval rule. For a function of one value it is enough to know where f(x) - k x can
be extreme (besides the ends of an interval):

    class Softsign(ops.Monotone):
        def forward(self, *inputs): return torch.nn.functional.softsign(inputs[0])

    @operation(nn.Softsign)
    def softsign(build, module, x): return build.add(Softsign(), x)

    @relaxation(Softsign)  # f' = 1 / (1 + |x|)^2 = k
    def lines(op, low, high, at, choice):
        def candidates(k, low, high):
            x = k.clamp(1e-9, 1) ** -0.5 - 1
            return [x, -x]
        return curved(op, low, high, at, choice, candidates)

`TABLE` maps every name a user can type to its class.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

TABLE: dict[str, str] = {
    "abs": "robustkit.certify.synthesis:SynthesisBound",
    "alpha-crown": "robustkit.certify.alpha_crown:AlphaCrown",
    "crown": "robustkit.certify.crown:Crown",
    "crown-ibp": "robustkit.certify.crown_ibp:CrownIBP",
    "ibp": "robustkit.certify.ibp:IBP",
    "pixeldp": "robustkit.certify.pixeldp:PixelDP",
    "renyi": "robustkit.certify.renyi:Renyi",
    "smoothing": "robustkit.certify.smoothing:SmoothingCertifier",
    "sound": "robustkit.certify.sound:Sound",
}

_PUBLIC = {
    "AlphaCrown": "robustkit.certify.alpha_crown",
    "Crown": "robustkit.certify.crown",
    "CrownIBP": "robustkit.certify.crown_ibp",
    "IBP": "robustkit.certify.ibp",
    "Lines": "robustkit.certify.relax",
    "Region": "robustkit.certify.region",
    "SynthesisBound": "robustkit.certify.synthesis",
    "crown_margins": "robustkit.certify.crown_ibp",
    "curved": "robustkit.certify.relax",
    "relaxation": "robustkit.certify.relax",
    "Graph": "robustkit.certify.graph",
    "Network": "robustkit.certify.graph",
    "Sound": "robustkit.certify.sound",
    "trace": "robustkit.certify.graph",
    "operation": "robustkit.certify.rules",
    "box": "robustkit.certify.interval",
    "interval_rule": "robustkit.certify.interval",
    "rounding_rule": "robustkit.certify.rounding",
    "interval_logits": "robustkit.certify.interval",
    "interval_margins": "robustkit.certify.interval",
    "worst_logits": "robustkit.certify.interval",
}

__all__ = ["TABLE", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"robustkit.certify has no {name!r}: it has {', '.join(_PUBLIC)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__


class _Room(ModuleType):
    """The package `robustkit.certify`, which stays callable as the function `robustkit.certify` that it hides once imported."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from robustkit.engine import certify

        return certify(*arguments, **options)


sys.modules[__name__].__class__ = _Room

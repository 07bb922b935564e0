"""Certifiers: proofs that no error lies within a ball, and the bound-propagation graph they share.

    from robustkit import Linf
    from robustkit.certify import IBP
    IBP()(model, x, y, threat=Linf("0.1")).radius

A network is traced into a small set of typed operations (`ops`), and a bound is one rule per
operation: `interval` holds the interval rules. Certified training uses the same pure,
differentiable functions on the live module:

    graph = trace(module)
    loss = cross_entropy(worst_logits(graph, x, y, eps), y)

A further operation needs two rules: `operation(torch_target)` says what it becomes in the graph,
`interval_rule(OpType)` how an interval goes through it (ops that derive from `ops.Affine` or
`ops.Monotone` have one already):

    class Softplus(ops.Monotone):
        def forward(self, *inputs): return torch.nn.functional.softplus(inputs[0])

    @operation(nn.Softplus)
    def softplus(build, module, x): return build.add(Softplus(), x)

`TABLE` maps every name a user can type to its class.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

TABLE: dict[str, str] = {"ibp": "robustkit.certify.ibp:IBP"}

_PUBLIC = {
    "IBP": "robustkit.certify.ibp",
    "Graph": "robustkit.certify.graph",
    "Network": "robustkit.certify.graph",
    "trace": "robustkit.certify.graph",
    "operation": "robustkit.certify.rules",
    "box": "robustkit.certify.interval",
    "interval_rule": "robustkit.certify.interval",
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

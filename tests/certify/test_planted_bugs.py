"""Bugs planted in backward bounds show in what is sampled, attacked and read off at single points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit.certify import adjoint, backward, forms, ops, region, relax, relaxed, starts, trace
from robustkit.certify.interval import Interval
from robustkit.certify.region import Region

Made = tuple[nn.Module, tuple[int, ...]]


def _scaled_lines(kind: type, **factors: float) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(patch: pytest.MonkeyPatch) -> None:
        rule = relax.LINE_RULES[kind]

        def wrong(op: Any, low: Tensor, high: Tensor, at: Tensor, choice: Any) -> relax.Lines:
            lines = rule(op, low, high, at, choice)
            return lines._replace(**{name: getattr(lines, name) * factor for name, factor in factors.items()})

        patch.setitem(relax.LINE_RULES, kind, wrong)

    return plant


def _patched(place: Any, name: str, make: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(place, name, make(getattr(place, name)))


def _swapped(pull: Any) -> Any:
    def wrong(self: Any, form: Any, *rest: Any) -> Any:
        (out,), constant = pull(self, replace(form, coef=-form.coef), *rest)
        return [replace(out, coef=-out.coef)], -constant

    return wrong


BUGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "upper slope too flat": _scaled_lines(ops.ReLU, upper_slope=0.5),
    "upper constant lost": _scaled_lines(ops.ReLU, upper_gap=0.0),
    "lower slope too steep": _scaled_lines(ops.ReLU, lower_slope=1.5),
    "lower and upper line swapped": _patched(relaxed.Elementwise, "pull", _swapped),
    "input set too small": _patched(region, "box", lambda box: lambda x, eps: box(x, eps * 0.7)),
    "width of the input set lost": _patched(Region, "least", lambda least: lambda self, form, groups: least(self, form, groups) * 0.5),
    "upper bounds of neurons not negated": _patched(starts, "_both", lambda both: lambda rows: torch.stack((rows, rows), 1).flatten(0, 1)),
    "label and other class swapped": _patched(
        backward, "margin_forms", lambda made: lambda *a: (replace(made(*a)[0], coef=-made(*a)[0].coef), made(*a)[1])
    ),
    "intervals of a smaller ball": _patched(
        backward,
        "bound_nodes",
        lambda bound: (
            lambda state, tighten: (
                bound(state, tighten),
                state.intervals.update({i: Interval(v.centre, v.width * 0.6) for i, v in state.intervals.items() if i}),
            )
        ),
    ),
    "values of another reference point": _patched(
        backward, "prepare", lambda made: lambda network, where: replace(made(network, replace(where, at=where.high)), region=where)
    ),
    "windows in the wrong place": _patched(
        forms.Windows, "spread", lambda spread: lambda self, v, g: spread(replace(self, origin=(self.origin[0] + 1, self.origin[1])), v, g)
    ),
    "padding of a convolution forgotten": _patched(
        adjoint, "_windows", lambda run: lambda op, *rest: run(replace(op, padding=(0, 0)), *rest)
    ),
    "stride of a transposed convolution": _patched(
        adjoint, "transposed", lambda run: lambda op, coef, before, size: run(op, coef, tuple(b + 1 for b in before), size)
    ),
}


class At(Region):
    """Reads bounds off at one point per sample instead of the worst: what is linear must lie below the network everywhere."""

    point: Tensor

    def least(self, form: forms.Form, groups: forms.Groups) -> Tensor:
        return forms.dot(form.rows(groups), form.spread((self.point - self.at).unsqueeze(1), groups))


def _violation(make_network: Callable[..., Made], least_found: Callable[..., Tensor]) -> float:
    """The most by which anything found lies outside of its bound: margins, linear bounds at points, neurons."""
    worst = -np.inf
    for name in ("relu", "conv", "strides", "residual"):
        module, shape = make_network(name)
        x = torch.rand(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 0.6 + 0.2
        y = module(x).argmax(1)
        network = trace(module).network(shape, torch.float64)
        others = starts.other_classes(y, network.classes)
        for eps in (0.05, 0.4):
            inputs = Region.around(x, eps)
            with torch.no_grad():
                state = backward.prepare(network, inputs)
                backward.bound_nodes(state, "adaptive")
                bound = backward.bound_margins(state, y, others, state.relax("adaptive"))
            worst = max(worst, float((bound - least_found(module, x, eps, "linf", y).gather(1, others)).max()))
            drawn = torch.rand(6, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
            drawn[3:] = drawn[3:].round()
            for point in (x + eps * (2 * drawn - 1)).clamp(0, 1):
                values = [point]
                with torch.no_grad():
                    for node in network.nodes[1:]:
                        values.append(node.op.forward(*(values[i] for i in node.inputs)))
                    for value, found in zip(values, state.intervals.values()):
                        worst = max(worst, float(torch.maximum(value - found.high, found.low - value).max()))
                    at = At(inputs.at, inputs.low, inputs.high)
                    object.__setattr__(at, "point", point)
                    bound = backward.bound_margins(replace(state, region=at), y, others, state.relax("adaptive"))
                    truth = values[-1].gather(1, y[:, None]) - values[-1].gather(1, others)
                    worst = max(worst, float((bound - truth).max()))
                    for number in backward.tightenable(network, inputs):
                        where = torch.ones_like(values[number]).flatten(1).nonzero()[::3]
                        lines = state.relax("adaptive")
                        units = starts.unit_forms(network, x, number, where)
                        below = torch.cat([backward.pull(replace(state, region=at), f, n, g, lines) for f, n, g in units])[: len(where)]
                        moved = (values[number] - state.values[number]).flatten(1)[where[:, 0], where[:, 1]]
                        worst = max(worst, float((below - torch.stack((moved, -moved), 1)).max()))
    return worst


def test_without_a_bug_nothing_shows(make_network: Callable[..., Made], least_found: Callable[..., Tensor]) -> None:
    assert _violation(make_network, least_found) <= 1e-9


@pytest.mark.parametrize("bug", BUGS)
def test_bugs_are_caught(
    bug: str, make_network: Callable[..., Made], least_found: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    BUGS[bug](monkeypatch)
    assert _violation(make_network, least_found) > 1e-4

"""What must hold of every certifier: no certificate at a known witness, none below an exact minimum, and bugs planted in intervals show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks import PGD
from robustkit.certify import IBP, AlphaCrown, Crown, CrownIBP, Sound, backward, fold, interval, ops, rounding, trace
from robustkit.certify import sound as sounding
from robustkit.certify.interval import Ball, Interval, box, interval_logits, interval_margins
from robustkit.classifier import Classifier
from robustkit.errors import BadInput
from robustkit.threats import L1, L2, Linf, Threat
from robustkit.verdict.proof import largest_radius, prove

Made = tuple[nn.Module, tuple[int, ...]]
METHODS = [IBP(), CrownIBP(), Crown(), Crown("same"), AlphaCrown(steps=2), AlphaCrown(steps=2, intermediate="fixed")]
WITNESSED = [IBP(), CrownIBP(), Crown(), AlphaCrown(steps=1, intermediate="fixed"), Sound(Crown())]
EVERY = [*METHODS, Sound(IBP()), Sound(Crown()), Sound(AlphaCrown(steps=2, intermediate="fixed"))]


def _balanced(module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The network with logits normalised, so that classes change within the box of images."""
    with torch.no_grad():
        logits = module(torch.rand(200, *shape, generator=torch.Generator().manual_seed(0)))
    norm = nn.BatchNorm1d(logits.shape[1], affine=False)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(logits.mean(0))
    norm.running_var.copy_(logits.var(0))
    return nn.Sequential(module, norm).eval()


# ---- certificates and witnesses


@pytest.mark.parametrize("threat", [Linf("0.5"), L2("1"), L1("3")], ids=lambda t: t.name)
def test_no_certificate_at_or_above_a_known_witness(network: Made, threat: Threat) -> None:
    """Proofs are asked for in the very balls that the witnesses' sizes make, and in the next larger ones."""
    module, shape = network
    classifier = Classifier(_balanced(module.float(), shape))
    x = torch.rand(48, *shape, generator=torch.Generator().manual_seed(7))
    y = classifier.logits(x).argmax(1)
    found = PGD(steps=10, loss="margin")(classifier, x, y, threat=threat)
    at = found.success.nonzero()[:, 0][:4]
    assert len(at), "nothing is broken: the test would be empty"
    x, y, p, low = x[at], y[at], found.parameters[at], torch.zeros(len(at))
    high = torch.ones(len(at))
    for _ in range(12):  # smaller witnesses of the same directions: further certificates that must not be given
        middle = (low + high) / 2
        share = middle.view(-1, *[1] * len(shape))
        wrong = classifier.logits64(threat.apply(x, p * share)).argmax(1) != y
        low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
    size = threat.size(x, p * high.view(-1, *[1] * len(shape)))
    for method in WITNESSED:
        if threat.name not in getattr(method, "method", method).threats:
            continue
        bound = method.bind(classifier, threat)
        for eps in (size, size * 1.2):
            assert not bool(prove(bound, x, y, eps)[0].any()), str(method.spec)


# ---- exact minima


def _matrix(module: nn.Sequential, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    count = int(torch.Size(shape).numel())
    with torch.no_grad():
        bias = module(torch.zeros(1, *shape, dtype=torch.float64))
        rows = module(torch.eye(count, dtype=torch.float64).view(count, *shape)) - bias
    return rows.flatten(1).T.numpy(), bias.flatten().numpy(), tuple(bias.shape[1:])


@pytest.mark.parametrize("method", EVERY, ids=lambda m: str(m.spec))
@pytest.mark.parametrize("seed", range(3))
def test_margins_are_below_exact_minima_at_the_certified_radius(method: Any, seed: int, exact_minimum: Callable[..., float]) -> None:
    """Convolutional ReLU networks with batch norm and averages, as matrices; at the radius and just below it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = [nn.Sequential(nn.Conv2d(1, 2, 2, 1 + seed % 2), nn.BatchNorm2d(2)), nn.Sequential(nn.AvgPool2d(2, 1, 1), nn.Flatten())]
        parts[1].append(nn.Linear(parts[1](parts[0].eval()(torch.zeros(1, 1, 3, 3))).shape[1], 4))
        parts.append(nn.Sequential(nn.Linear(4, 3)))
    front = [parts[0], nn.ReLU(), parts[1], nn.ReLU(), parts[2]]
    module = nn.Sequential(*front).eval()
    classifier, x = Classifier(module), torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    y = classifier.logits(x).argmax(1)
    zero = torch.zeros(1, dtype=torch.float64)
    radius, margin = largest_radius(method.bind(classifier, Linf("0.1")), x, y, zero, zero + 1, rounds=5)
    assert float(radius) > 0
    layers, shape = [], (1, 3, 3)
    for part in parts:
        weight, bias, shape = _matrix(part.double(), shape)
        layers.append((weight, bias))
    for eps in (float(radius), float(radius) * (1 - 1e-9)):
        low, high = (v.flatten().numpy() for v in ((x.double() - eps).clamp(0, 1), (x.double() + eps).clamp(0, 1)))
        unit = np.eye(3)
        exact = min(exact_minimum(layers, low, high, unit[int(y)] - unit[j]) for j in range(3) if j != int(y))
        assert float(margin) <= exact + 2e-6


# ---- bugs planted in intervals


def _points(low: Tensor, high: Tensor, count: int = 40) -> Tensor:
    drawn = torch.rand(count, *low.shape, dtype=low.dtype, generator=torch.Generator().manual_seed(1))
    drawn[count // 2 :] = drawn[count // 2 :].round()
    return low + drawn * (high - low)


def _violation(make_network: Callable[..., Made]) -> float:
    """The most by which logits and margins of points lie outside of their interval bounds, in boxes, balls and single points."""
    worst = -np.inf
    for name in ("relu", "conv", "norms", "gelu", "residual", "transposed", "two-linear", "normalising", "hardtanh"):
        module, shape = make_network(name)
        graph = trace(module)
        for eps, place in ((0.0, 0.5), (0.02, 0.5), (0.3, 0.5), (0.3, 0.0)):
            x = torch.rand(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
            x = x if place else x.round()
            y = torch.tensor([0, 1, 2])
            low, high = box(x, eps)
            with torch.no_grad():
                lower, upper = interval_logits(graph, low, high)
                bounds = interval_margins(graph, low, high, y)
                true_low, true_high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
                for point in _points(true_low, true_high):
                    logits = module(point)
                    margins = logits.gather(1, y[:, None]) - logits
                    worst = max(worst, *(float(v.max()) for v in (lower - logits, logits - upper, bounds - margins)))
                worst = max(worst, _node_violation(graph, true_low, true_high, low, high))
                if eps:
                    ball = Ball(x, torch.ones_like(x[:1]), torch.full((3,), eps, dtype=torch.float64))
                    bounds = interval_margins(graph, low, high, y, ball)
                    for point in _points(-torch.ones_like(x), torch.ones_like(x)):
                        size = point.flatten(1).norm(dim=1).view(-1, *[1] * len(shape))
                        logits = module((x + eps * point / size).clamp(0, 1))
                        worst = max(worst, float((bounds - (logits.gather(1, y[:, None]) - logits)).max()))
    return worst


def _node_violation(graph: Any, true_low: Tensor, true_high: Tensor, low: Tensor, high: Tensor) -> float:
    """The same for the first nodes, at the corners where a linear function of the image is extreme."""
    network, worst = graph.network(tuple(low.shape[1:]), low.dtype), -np.inf
    for number in range(1, min(7, len(network.nodes) - 1)):
        found, _ = interval.propagate(network, low, high, None, number)
        for unit in range(0, found.centre[0].numel(), max(1, found.centre[0].numel() // 4)):
            for sign in (1, -1, 0.5):
                with torch.enable_grad():
                    x = ((true_low + true_high) / 2).requires_grad_()
                    value = _value(network, x, number).flatten(1)[:, unit]
                    gradient = torch.autograd.grad(value.sum(), x)[0] if value.requires_grad else torch.zeros_like(x)
                corner = torch.where(gradient * sign > 0, true_high, true_low) if abs(sign) == 1 else x.detach()
                value = _value(network, corner, number)
                worst = max(worst, float((found.low - value).max()), float((value - found.high).max()))
    return worst


def _value(network: Any, x: Tensor, number: int) -> Tensor:
    values = [x]
    for node in network.nodes[1 : number + 1]:
        values.append(node.op.forward(*(values[i] for i in node.inputs)))
    return values[-1]


def _single(name: str, place: Any, make: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(place, name, make(getattr(place, name)))


def _rule(kind: type, make: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setitem(interval.INTERVAL_RULES, kind, make(interval.INTERVAL_RULES[kind]))


def _tensor_cores(weight: Tensor) -> Tensor:
    """Rounded to the ten bits that TF32 keeps."""
    return (weight.float().view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32).to(weight)


class _Stale:
    """Intervals of the first call, whatever the box."""

    def __init__(self, run: Any) -> None:
        self.run, self.first = run, {}  # type: ignore[var-annotated]

    def __call__(self, network: Any, low: Tensor, high: Tensor, *rest: Any) -> Any:
        key = (len(network.nodes), str([n.shape for n in network.nodes]), rest[1:])
        if key not in self.first:
            self.first[key] = self.run(network, low, high, *rest)
        found, ball = self.first[key]
        return Interval(found.centre.clone(), found.width.clone()), ball


BUGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "bias lost": _single("forward", ops.Linear, lambda run: lambda self, *v: ops.product(v[0], self.weight)),
    "weights without their absolute value": _single("magnitude", ops.Conv, lambda run: lambda self, *w: self._convolve(w[0], self.weight)),
    "only half of the width": _rule(ops.Affine, lambda rule: lambda *a: rule(*a)._replace(width=rule(*a).width * 0.5)),
    "bounds swapped": _single("between", Interval, lambda make: staticmethod(lambda low, high: make(high, low))),
    "wrong slope of a relu": _rule(ops.ReLU, lambda rule: lambda *a: rule(*a)._replace(width=rule(*a).width * 0.9)),
    "least value inside an interval forgotten": lambda patch: patch.setitem(
        interval.INTERVAL_RULES, interval.Dipping, interval.INTERVAL_RULES[ops.Monotone]
    ),
    "box clipped too far": _single(
        "box", interval, lambda make: lambda x, eps: tuple(e.clamp(0.1, 0.9) for e in make(x, eps))
    ),
    "box not rounded outward but too small": _single("box", interval, lambda make: lambda x, eps: make(x, eps * 0.99)),
    "minus sign of the specification lost": _single(
        "_difference", interval, lambda run: lambda weight, y, *rest: run(weight, torch.zeros_like(y), *rest)
    ),
    "radius of the ball lost": _single("reach", Ball, lambda run: lambda self, squares: run(self, squares) * 0.3),
    "intervals of an earlier call": _single("propagate", interval, _Stale),
    "batch norm folded without the old bias": _single(
        "_scale_result", fold, lambda run: lambda op, scale, shift: run(op, scale, shift * 0)
    ),
    "weights rounded as by TF32": _single(
        "forward", ops.Conv, lambda run: lambda self, *v: self._convolve(v[0], _tensor_cores(self.weight), self.bias)
    ),
    "alpha of a sum forgotten": _single("magnitude", ops.Sum, lambda run: lambda self, a, b: a),
}  # fmt: skip


def test_without_a_bug_nothing_shows(make_network: Callable[..., Made]) -> None:
    assert _violation(make_network) <= 1e-9


@pytest.mark.parametrize("bug", BUGS)
def test_bugs_in_intervals_are_caught(bug: str, make_network: Callable[..., Made], monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](monkeypatch)
    if "box" in bug:
        monkeypatch.setitem(globals(), "box", interval.box)
    try:
        found = _violation(make_network)
    except BadInput:  # the trace compares the graph with the module
        found = np.inf
    assert found > 1e-5


# ---- bugs planted in the rounding


def _refused() -> bool:
    """Whether the network that absorbs a large constant is refused by intervals and by backward bounds."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).requires_grad_(False)
    for layer, weight, bias in ((module[1], [[1.0]], [2.0**21]), (module[3], [[1.0], [0.0]], [-(2.0**21), 0.3])):
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    x, y, eps = torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, dtype=torch.int64), torch.full((1,), 0.13, dtype=torch.float64)
    classifier = Classifier(module)
    return all(float(Sound(m).bind(classifier, Linf("0.13"))(x, y, eps)) <= 0 for m in (IBP(), CrownIBP(), Crown(), AlphaCrown(steps=2)))


def _of_double(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rounding, "SINGLE", rounding.DOUBLE)


def _without_bias(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(rounding.RULES, ops.Linear, lambda op, sizes, result: (3, op.magnitude(*sizes) * 1e-6))


def _not_charged(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        backward, "_less", lambda bound, form, error, groups: torch.zeros_like(form.rows(groups)[..., 0]) if bound is None else bound
    )


def _of_the_plain_bound(patch: pytest.MonkeyPatch) -> None:
    prepare = sounding.prepare

    def forgetting(*arguments: Any) -> Any:
        state = prepare(*arguments)
        object.__setattr__(state, "__class__", _Forgetting)
        return state

    patch.setattr(sounding, "prepare", forgetting)
    patch.setattr(sounding, "interval_bounds", lambda state, y, others: torch.full(others.shape, -1.0, dtype=torch.float64))


class _Forgetting(backward.State):
    """A state that drops its errors."""

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, None if name == "errors" else value)


@pytest.mark.parametrize("bug", [_of_double, _without_bias, _not_charged, _of_the_plain_bound], ids=lambda f: f.__name__.strip("_"))
def test_bugs_in_the_rounding_are_caught(bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    assert _refused()
    bug(monkeypatch)
    assert not _refused()

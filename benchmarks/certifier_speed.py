"""What certifiers prove and cost: every method on the same images, beside auto_LiRPA where it is installed.

    python benchmarks/certifier_speed.py FILE.safetensors --data mnist:n=100 --threat linf:0.1 --threads 1 --cpu-time

Methods take turns on the same correct or incorrect images, in the engine's own call (box, clipping,
margins of all classes). A method's cost is also given in forward passes of the bare network on a
batch of 100. auto_LiRPA computes lower bounds of the same margins in batches of 20, its input box
clipped as ours; its alpha-CROWN re-bounds all hidden layers in each of 20 iterations, as ours does.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import options
import torch
from torch import Tensor

from robustkit import Classifier, load_data, load_model, registry
from robustkit.core.comparisons import float_below
from robustkit.errors import RobustkitError
from robustkit.numerics import exact_mode
from robustkit.tables import listing
from robustkit.threats import Threat, load_threat

METHODS = ("ibp", "crown-ibp", "crown", "crown:slope=same", "alpha-crown:intermediate=fixed", "alpha-crown")

PEER = {"IBP": "IBP", "CROWN-IBP": "CROWN-IBP", "CROWN": "CROWN", "alpha-CROWN": "CROWN-Optimized"}
"""auto_LiRPA's methods by the name printed."""


def peer(classifier: Classifier, eps: float, batch: int = 20) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """auto_LiRPA's bounds as functions of images and labels; nothing where it is not installed. l_inf only."""
    try:
        lirpa = importlib.import_module("auto_LiRPA")
        perturbations = importlib.import_module("auto_LiRPA.perturbations")
    except ImportError as problem:
        print(f"auto_LiRPA is left out: {problem}", file=sys.stderr)
        return {}
    shape = classifier.input_shape or (1, 28, 28)
    bounded = lirpa.BoundedModule(classifier.module, torch.zeros(1, *shape), device="cpu")
    bounded.set_bound_opts({"optimize_bound_args": {"iteration": 20, "lr_alpha": 0.1}})

    def run(method: str, x: Tensor, y: Tensor) -> Tensor:
        found = []
        for images, labels in ((x[i : i + batch], y[i : i + batch]) for i in range(0, len(x), batch)):
            ends = {"x_L": (images - eps).clamp(0, 1), "x_U": (images + eps).clamp(0, 1)}
            ball = perturbations.PerturbationLpNorm(norm=float("inf"), eps=eps, **ends)
            unit = torch.eye(int(classifier.logits(images[:1]).shape[1]))
            every = unit[labels].unsqueeze(1) - unit
            spread = every[torch.arange(len(unit)) != labels[:, None]].view(len(labels), -1, len(unit))
            lower, _ = bounded.compute_bounds(x=(lirpa.BoundedTensor(images, ball),), C=spread, method=method, bound_upper=False)
            found.append(lower.detach().amin(1))
        return torch.cat(found)

    return {f"auto_LiRPA {name}": partial(run, method) for name, method in PEER.items()}


def ours(classifier: Classifier, threat: Threat, methods: Sequence[str]) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Certifiers as functions of images and labels."""
    eps = float_below(threat.eps)

    def bound(spec: str) -> Callable[[Tensor, Tensor], Tensor]:
        prove = registry.make("certifier", spec).bind(classifier, threat)
        return lambda x, y: prove(x, y, torch.full((len(x),), eps, dtype=torch.float64))

    return {spec: bound(spec) for spec in methods}


def measure(run: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, correct: Tensor, clock: Callable[[], float]) -> dict[str, Any]:
    """Proven images, mean worst margin and milliseconds an image."""
    run(x[:2], y[:2])
    with exact_mode():
        start = clock()
        margins = run(x, y)
        seconds = clock() - start
    return {"proven": int((correct & (margins > 0)).sum()), "margin": float(margins.mean()), "ms": 1e3 * seconds / len(x)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; exit code as robustkit's for bad input or missing data."""
    parser = options.parser("Certifiers side by side: images proven, tightness, time.", clock=True)
    parser.add_argument("model", nargs="?", default="zoo:mnist-pgd", help="the model to certify (default zoo:mnist-pgd)")
    parser.add_argument("--data", default="mnist:n=100", help="images (default mnist:n=100)")
    parser.add_argument("--threat", nargs="+", default=["linf:0.1"], help="threats, for example linf:0.1 linf:0.3 l2:0.5")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="certifiers (default: all that look inside)")
    parser.add_argument("--no-peer", action="store_true", help="leave auto_LiRPA out")
    chosen = options.parse(parser, arguments)
    clock = options.clock_of(chosen)
    try:
        classifier = load_model(chosen.model, device="cpu")
        x, y = load_data(chosen.data)
        logits = classifier.logits(x)
        correct = logits.argmax(1) == y
        start = clock()
        for _ in range(20):
            classifier.logits(x[:100])
        forward = 1e3 * (clock() - start) / 20 / len(x[:100])
        found = {}
        for spec in chosen.threat:
            threat = load_threat(spec)
            runs = ours(classifier, threat, chosen.methods)
            if not chosen.no_peer and threat.name == "linf":
                runs |= peer(classifier, float_below(threat.eps))
            found[spec] = {name: measure(run, x, y, correct, clock) for name, run in runs.items()}
    except RobustkitError as problem:
        print(f"certifier_speed: {problem}", file=sys.stderr)
        return problem.exit_code
    machine = {"platform": platform.platform(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    if chosen.json:
        print(json.dumps({"machine": machine, "model": chosen.model, "forward_ms": forward, "threats": found}, indent=2))
        return 0
    rows = [
        [threat, name, f"{row['proven']} / {len(x)}", f"{row['margin']:.3f}", f"{row['ms']:.2f} ms", f"{row['ms'] / forward:.0f}"]
        for threat, measured in found.items()
        for name, row in measured.items()
    ]
    title = f"{chosen.model}, {len(x)} images, {int(correct.sum())} correct; one forward pass {forward:.4f} ms an image; "
    title += ", ".join(f"{k} {v}" for k, v in machine.items())
    listing(title, rows, ["threat", "method", "proven", "mean margin", "an image", "forwards"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

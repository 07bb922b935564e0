"""What interval bounds cost: IBP of a batch against one forward pass of the same network, in one process.

    python benchmarks/ibp_speed.py [--models zoo:mnist-ibp] [--batch 256 512]

Forward passes and bounds take turns, so that a busy moment hits both; the ratio is the median over
the rounds of times measured in the same round. The bound is the certifier's own, as the engine
calls it: box, clipping, propagation and margins. The forward pass is that of the bare frozen module.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import options
import torch

from robustkit import Classifier, load_model
from robustkit.certify import IBP
from robustkit.errors import RobustkitError
from robustkit.models.architecture import build
from robustkit.models.architectures import architecture_text
from robustkit.tables import listing
from robustkit.threats import load_threat

CASES = {"wong-small": (1, 28, 28), "resnet-tiny": (3, 32, 32)}
"""Architectures with random weights, the second a residual network with batch norm."""


def cases(models: Sequence[str], device: str) -> dict[str, Classifier]:
    """The networks to measure, by name."""
    if models:
        return {spec: load_model(spec, device=device) for spec in models}
    named = {f"{name} (random)": (architecture_text(name, shape, 10), shape) for name, shape in CASES.items()}
    return {name: Classifier(build(text), input_shape=shape, device=device) for name, (text, shape) in named.items()}


def measure(classifier: Classifier, batch: int, threat: str, repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Median seconds of both and the median ratio, after one unmeasured round."""
    shape = classifier.input_shape or (1, 28, 28)
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0)).to(classifier.device)
    y = classifier.logits(x).argmax(1)
    eps = torch.full((batch,), 0.01, dtype=torch.float64, device=classifier.device)
    bound = IBP().bind(classifier, load_threat(threat))
    runs: dict[str, Callable[[], Any]] = {"forward": lambda: classifier.module(x), "ibp": lambda: bound(x, y, eps)}
    seconds = options.in_turn(runs, repeats, clock, classifier.device)
    ratio = statistics.median(mine / theirs for mine, theirs in zip(seconds["ibp"], seconds["forward"]))
    return {"batch": batch, "seconds": {name: statistics.median(times) for name, times in seconds.items()}, "ratio": ratio}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; exit code as robustkit's for bad input or missing data."""
    parser = options.parser("Interval bounds of a batch against one forward pass of the same network.", clock=True)
    parser.add_argument("--models", nargs="*", default=[], help="models to bound; default: two architectures with random weights")
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 512], help="batch sizes (default 256 512)")
    parser.add_argument("--threat", default="linf:0.1", help="family of the ball, linf or l2")
    parser.add_argument("--repeats", type=int, default=31, help="measured rounds (default 31)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    chosen = options.parse(parser, arguments)
    clock = options.clock_of(chosen)
    try:
        networks = cases(chosen.models, chosen.device)
        found = {n: [measure(c, batch, chosen.threat, chosen.repeats, clock) for batch in chosen.batch] for n, c in networks.items()}
    except RobustkitError as problem:
        print(f"ibp_speed: {problem}", file=sys.stderr)
        return problem.exit_code
    machine = {"platform": platform.platform(), "torch": torch.__version__, "threads": torch.get_num_threads(), "device": chosen.device}
    if chosen.json:
        print(json.dumps({"machine": machine, "threat": chosen.threat, "networks": found}, indent=2))
        return 0
    rows = [
        [name, str(row["batch"]), *(f"{row['seconds'][kind] * 1e3:.2f} ms" for kind in ("forward", "ibp")), f"{row['ratio']:.2f}"]
        for name, measured in found.items()
        for row in measured
    ]
    title = f"IBP ({chosen.threat}) against one forward pass; " + ", ".join(f"{k} {v}" for k, v in machine.items())
    listing(title, rows, ["network", "batch", "forward", "IBP", "ratio"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

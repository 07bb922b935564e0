"""How often geometric changes alone break a model: stAdv, ADef, and rotations with shifts.

    python benchmarks/geometric.py [--model zoo:mnist-standard] [--data mnist:n=200]

Shares are of the samples that are right without an attack. Flows have the budget of the image's
diagonal, which every flow keeps, so that stAdv and ADef are the papers' own attacks; their
deformation is the longest displacement of a pixel. The paper of stAdv aims at a class, hence the
targets. Worst of grid is 31 angles x 5 x 5 shifts; between its points lie worse ones.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

import options
import torch

from robustkit import Classifier, load_data, load_model, registry
from robustkit.errors import RobustkitError
from robustkit.tables import listing
from robustkit.threats import load_threat

FLOWS = (
    ("stadv", "untargeted"),
    ("stadv", "targeted:random"),
    ("stadv:optimizer=lbfgs", "untargeted"),
    ("stadv:optimizer=lbfgs", "targeted:random"),
    ("adef", "untargeted"),
    ("adef:sigma=1", "untargeted"),
)
TURNS = ("rotation:mode=random", "rotation:mode=grid", "pgd:steps=20,restarts=10,loss=margin")


def measure(classifier: Classifier, x: torch.Tensor, y: torch.Tensor, attack: str, threat: str, goal: str) -> dict[str, Any]:
    """Success among the samples that are right, sizes of the witnesses, and what they cost."""
    start = time.perf_counter()
    found = registry.make("attack", attack)(classifier, x, y, threat=threat, goal=goal)
    seconds = time.perf_counter() - start
    right = found.size > 0
    size = found.size[found.success]
    return {
        "attack": attack,
        "threat": threat,
        "goal": goal,
        "samples": int(right.sum()),
        "success": float(found.success[right].double().mean()) if bool(right.any()) else None,
        "size_mean": float(size.mean()) if len(size) else None,
        "size_max": float(size.max()) if len(size) else None,
        "queries_mean": float(found.queries[right].double().mean()),
        "gradients_mean": float(found.gradients[right].double().mean()),
        "seconds": seconds,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all cases; exit code as robustkit's for bad input or missing data."""
    parser = options.parser("Success of geometric attacks on one model.")
    parser.add_argument("--model", default="zoo:mnist-standard", help="model to attack (default zoo:mnist-standard)")
    parser.add_argument("--data", default="mnist:n=200", help="images (default mnist:n=200)")
    parser.add_argument("--data-root", help="folder of the data")
    parser.add_argument("--rotation", default="rotation:angle=30,shift=3", help="family of rotations (default angle=30,shift=3)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    chosen = options.parse(parser, arguments)
    try:
        classifier, data = load_model(chosen.model, device=chosen.device), load_data(chosen.data, chosen.data_root)
        x, y = data
        x = x.to(classifier.device)
        flow = load_threat("flow:1")
        widest = str(flow.at(flow.unbounded(data.shape)).spec)
        cases = [(attack, widest, goal) for attack, goal in FLOWS] + [(attack, chosen.rotation, "untargeted") for attack in TURNS]
        found = [measure(classifier, x, y, *case) for case in cases]
    except RobustkitError as problem:
        print(f"geometric: {problem}", file=sys.stderr)
        return problem.exit_code
    machine = {"platform": platform.platform(), "torch": torch.__version__, "threads": torch.get_num_threads(), "device": chosen.device}
    if chosen.json:
        print(json.dumps({"machine": machine, "model": chosen.model, "data": chosen.data, "cases": found}, indent=2))
        return 0

    def text(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    rows = [
        [row["attack"], row["goal"].partition(":")[0], text(row["success"], ".1%")]
        + [text(row[key], ".2f") for key in ("size_mean", "size_max")]
        + [text(row[key], ".1f") for key in ("queries_mean", "gradients_mean")]
        + [f"{row['seconds']:.1f} s"]
        for row in found
    ]
    right = found[0]["samples"]
    title = f"{chosen.model}, {right} samples of {chosen.data}; stadv and adef: {widest} (pixels), others: {chosen.rotation} (shares); "
    title += ", ".join(f"{k} {v}" for k, v in machine.items())
    columns = ["attack", "goal", "success", "size", "most", "asked", "grads", "time"]
    listing(title, rows, columns)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

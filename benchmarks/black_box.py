"""Black-box attacks: success against queries, what low frequencies save, and how busy they keep the model.

    python benchmarks/black_box.py [--n 200] [--offset 0] [--model zoo:mnist-standard] [--parts success frequencies throughput]
    python benchmarks/black_box.py --model FILE --data npz:images.npz --linf 8/255 --l2 1 --parts frequencies

success: NES within l_inf 0.3, query-limited (untargeted), with the scores of the likeliest
class alone and with the class alone (targeted:random), as shares reached within so many queries.
--offset leaves out the first images, on some of which constants were chosen. frequencies: median
queries of plain noise over those of low-frequency noise, sample for sample in the same run; a sample
that is never broken counts as infinitely many. throughput: rows a second of an attack that finds
nothing over those of the bare forward at the same batch size, taking turns.
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

from robustkit import load_data, load_model, registry
from robustkit.classifier import Classifier
from robustkit.data import Data
from robustkit.errors import RobustkitError
from robustkit.methods import Result
from robustkit.tables import listing

MARKS = (300, 1000, 3000, 10_000, 30_000, 100_000)
"""Numbers of queries at which the share reached is shown."""
SUCCESS = (
    ("nes", "untargeted"),
    ("square", "untargeted"),
    ("nes:mode=partial", "targeted:random"),
    ("nes:mode=label-only", "targeted:random"),
)
PAIRS = (
    ("nes", "nes:sampler=(low-frequency:1/2)", "untargeted", "linf"),
    ("nes", "nes:sampler=(low-frequency:1/4)", "untargeted", "linf"),
    ("nes", "nes:sampler=(low-frequency:1/4)", "targeted:random", "linf"),
    ("boundary:5000", "boundary:5000,sampler=(low-frequency:1/4)", "untargeted", "l2"),
    ("boundary:5000", "boundary:5000,sampler=auto", "untargeted", "l2"),
)
BUSY = (
    ("nes:queries=5000", "linf"),
    ("nes:queries=5000,sampler=(low-frequency:1/4)", "linf"),
    ("square:100", "linf"),
    ("nes:queries=5000", "l2"),
    ("square:1000", "l2"),
    ("boundary:1000", "l2"),
)
"""Attacks whose throughput is measured, and in which norm."""


def attacked(spec: str, goal: str, threat: str, classifier: Classifier, data: Data, pool: Data) -> Result:
    """The attack's result on correctly classified images (those that are its target already are left out as well)."""
    attack = registry.make("attack", spec)
    found: Result = attack(classifier, *data, threat=threat, goal=goal, pool=pool)
    return found


def queries(found: Result) -> torch.Tensor:
    """(M,) float64 queries of every attacked sample, +inf where it was not broken."""
    tried = found.size > 0
    return torch.where(found.success, found.queries.double(), torch.inf)[tried]


def success(classifier: Classifier, data: Data, pool: Data, threat: str) -> list[dict[str, Any]]:
    """Shares reached within so many queries."""
    rows = []
    for spec, goal in SUCCESS:
        spent = queries(attacked(spec, goal, threat, classifier, data, pool))
        shares = [float((spent <= mark).double().mean()) for mark in MARKS]
        share = float(torch.isfinite(spent).double().mean())
        rows.append(
            {"attack": spec, "goal": goal, "threat": threat, "n": len(spent), "success": share, "median": median(spent), "shares": shares}
        )
    return rows


def frequencies(classifier: Classifier, data: Data, pool: Data, threats: dict[str, str]) -> list[dict[str, Any]]:
    """Median queries of plain over low-frequency noise."""
    rows, known = [], {}
    for plain, low, goal, norm in PAIRS:
        threat = threats[norm]
        for spec in (plain, low):
            if (spec, goal, threat) not in known:
                known[spec, goal, threat] = queries(attacked(spec, goal, threat, classifier, data, pool))
        one, other = known[plain, goal, threat], known[low, goal, threat]
        rows.append(
            {
                "attack": low,
                "goal": goal,
                "threat": threat,
                "n": len(one),
                "plain": median(one),
                "low": median(other),
                "ratio": median(one) / median(other),
                "success": [float(torch.isfinite(spent).double().mean()) for spent in (one, other)],
            }
        )
    return rows


def median(spent: torch.Tensor) -> float:
    """The median with all samples, broken or not."""
    return float(spent.sort().values[(len(spent) - 1) // 2])


def throughput(classifier: Classifier, data: Data, batch: int, repeats: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Rows a second of an attack within a budget of 1e-4, which breaks nothing, over those of the bare forward."""
    rows = []
    for spec, norm in BUSY:
        attack = registry.make("attack", spec)
        count = min(len(data), 2 * max(1, max(batch, 768) // attack.width))
        x, y = data.images(slice(0, count)), data.y[:count]
        full = x[torch.arange(batch) % count].to(classifier.device)

        sent: dict[str, int] = {}

        def forward(full: torch.Tensor = full, sent: dict[str, int] = sent) -> None:
            for _ in range(40):
                classifier.forward(full)
            sent["forward"] = 40 * len(full)

        def search(attack: Any = attack, norm: str = norm, x: torch.Tensor = x, y: torch.Tensor = y, sent: dict[str, int] = sent) -> None:
            before = classifier.forwards
            attack(classifier, x, y, threat=f"{norm}:0.0001", batch_size=batch, pool=(x, y))
            sent["speed"] = classifier.forwards - before

        seconds = options.in_turn({"forward": forward, "speed": search}, repeats, clock, classifier.device)
        speed = {name: [sent[name] / each for each in times] for name, times in seconds.items()}
        ratio = statistics.median(mine / bare for mine, bare in zip(speed["speed"], speed["forward"]))
        rows.append(
            {"attack": spec, "norm": norm, "batch": batch, "ratio": ratio}
            | {name: statistics.median(found) for name, found in speed.items()}
        )
    return rows


def show(found: dict[str, list[dict[str, Any]]], machine: dict[str, Any]) -> None:
    """Print the tables."""
    where = ", ".join(f"{k} {v}" for k, v in machine.items())
    if "success" in found:
        lines = [
            [r["attack"], r["goal"], str(r["n"]), *(f"{s:.3f}" for s in r["shares"]), f"{r['success']:.3f}", f"{r['median']:.0f}"]
            for r in found["success"]
        ]
        listing(
            f"share broken within so many queries; {where}",
            lines,
            ["attack", "goal", "n", *(f"{m // 1000}k" if m >= 1000 else str(m) for m in MARKS), "in all", "median"],
        )
    if "frequencies" in found:
        lines = [
            [
                r["attack"],
                r["goal"],
                r["threat"],
                str(r["n"]),
                f"{r['plain']:.0f}",
                f"{r['low']:.0f}",
                f"{r['ratio']:.2f}",
                *(f"{s:.3f}" for s in r["success"]),
            ]
            for r in found["frequencies"]
        ]
        listing(
            f"median queries; {where}", lines, ["attack", "goal", "threat", "n", "plain", "low", "ratio", "success plain", "success low"]
        )
    if "throughput" in found:
        lines = [
            [r["attack"], r["norm"], str(r["batch"]), f"{r['forward']:.0f}", f"{r['speed']:.0f}", f"{r['ratio']:.2f}"]
            for r in found["throughput"]
        ]
        listing(f"rows a second; {where}", lines, ["attack", "norm", "batch", "bare forward", "attack's", "ratio"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code as robustkit's for bad input or missing data."""
    parser = options.parser("Black-box attacks: success against queries, low frequencies, throughput.", clock=True)
    parser.add_argument("--model", default="zoo:mnist-standard", help="the model attacked (default zoo:mnist-standard)")
    parser.add_argument("--data", default="mnist", help="images without options (default mnist)")
    parser.add_argument("--pool", help="images that decision-based attacks start from (default mnist:n=1000,split=train, or --data)")
    parser.add_argument("--n", type=int, default=200, help="test images (default 200)")
    parser.add_argument("--offset", type=int, default=0, help="test images to leave out before them (default 0)")
    parser.add_argument("--linf", default="0.3", help="budget in l_inf (default 0.3)")
    parser.add_argument("--l2", default="2", help="budget in l2 (default 2)")
    parser.add_argument("--parts", nargs="+", default=["success", "frequencies", "throughput"], help="what to measure (default all)")
    parser.add_argument("--batch", type=int, nargs="+", default=[192, 768], help="batch sizes of the throughput (default 192 768)")
    parser.add_argument("--repeats", type=int, default=7, help="measured rounds of the throughput (default 7)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--data-root", help="folder of the data sets")
    chosen = options.parse(parser, arguments)
    if unknown := set(chosen.parts) - {"success", "frequencies", "throughput"}:
        parser.error(f"unknown part {', '.join(sorted(unknown))}: known: success, frequencies, throughput")
    if chosen.n < 1 or chosen.offset < 0:
        parser.error(f"--n {chosen.n} --offset {chosen.offset}: expected at least 1 image, and 0 or more left out")
    clock = options.clock_of(chosen)
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        classifier = load_model(chosen.model, device=chosen.device)
        head = chosen.data + ("," if ":" in chosen.data else ":")
        data = load_data(f"{head}n={chosen.offset + chosen.n}", chosen.data_root).subset(slice(chosen.offset, None))
        pool = load_data(chosen.pool or ("mnist:n=1000,split=train" if chosen.data == "mnist" else chosen.data), chosen.data_root)
        threats = {"linf": f"linf:{chosen.linf}", "l2": f"l2:{chosen.l2}"}
        if "success" in chosen.parts:
            found["success"] = success(classifier, data, pool, threats["linf"])
        if "frequencies" in chosen.parts:
            found["frequencies"] = frequencies(classifier, data, pool, threats)
        if "throughput" in chosen.parts:
            many = load_data(f"{head}n={2 * max(chosen.batch)}", chosen.data_root)
            found["throughput"] = [r for batch in chosen.batch for r in throughput(classifier, many, batch, chosen.repeats, clock)]
    except RobustkitError as problem:
        print(f"black_box: {problem}", file=sys.stderr)
        return problem.exit_code
    machine = {"platform": platform.platform(), "torch": torch.__version__, "threads": torch.get_num_threads(), "device": chosen.device}
    if chosen.json:
        print(json.dumps({"machine": machine, "model": chosen.model, "data": data.spec, "offset": chosen.offset} | found, indent=2))
    else:
        show(found, machine)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""PGD side by side in one process: robustkit, Foolbox 3.3.4, torchattacks 3.5.1, the physical limit.

    python benchmarks/pgd_speed.py --data-root DIR

The contenders take turns, so that a busy moment hits them all; ratios are medians over the rounds
of times measured in the same round.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import options
import torch
from contenders import Case, Run, foolbox, limit, ours, robust_accuracy, torchattacks

from robustkit import Classifier, load_data, load_model
from robustkit.errors import RobustkitError
from robustkit.tables import listing
from robustkit.torchvision_compat import torchvision

STEP_SIZE = Fraction(1, 10)


def mnist_case(spec: str, arguments: argparse.Namespace) -> Case:
    """A model on the first MNIST test images at l_inf 0.3."""
    classifier = load_model(spec)
    x, y = load_data(f"mnist:n={arguments.n}", root=arguments.data_root)
    classifier.check(x[:1], y)
    return Case(spec, classifier, x, y, Fraction(3, 10), STEP_SIZE, arguments.steps)


def resnet_case() -> Case:
    """Overhead only: an untrained ResNet-18, its own predictions as labels, every step taken."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Classifier(torchvision().models.resnet18(weights=None, num_classes=10).eval(), spec="resnet18 (untrained)")
        x = torch.rand(64, 3, 32, 32)
    classifier.check(x[:1])
    return Case("resnet18 (untrained)", classifier, x, classifier.logits(x).argmax(1), Fraction(8, 255), STEP_SIZE, 10, "never")


def contenders(case: Case) -> dict[str, Run]:
    """Who takes part; a peer that is not installed is named and left out."""
    chosen = {"robustkit": ours(case), "foolbox": foolbox(case), "limit": limit(case)}
    try:
        chosen["torchattacks"] = torchattacks(case)
    except ImportError:
        print("torchattacks is left out: pip install --no-deps -r benchmarks/requirements.txt", file=sys.stderr)
    return chosen


def measure(case: Case, repeats: int, clock: Callable[[], float], peers_first: bool) -> dict[str, Any]:
    """Time every contender `repeats` times in turn, after one unmeasured round.

    robustkit has the C library keep freed memory, which serves whatever comes after it in the process.
    With `peers_first` the others have all their rounds before that, as in a process without robustkit.
    """
    runs = contenders(case)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    robust: dict[str, list[float]] = {name: [] for name in runs if name != "limit"}
    names = list(runs)
    order = [(turn, name) for turn in range(repeats + 1) for name in names[turn % len(names) :] + names[: turn % len(names)]]
    if peers_first:
        order.sort(key=lambda entry: entry[1] == "robustkit")
    for turn, name in order:
        start = clock()
        adversarial = runs[name](turn)
        took = clock() - start
        if turn:
            seconds[name].append(took)
        if adversarial is not None:
            robust[name].append(robust_accuracy(case, adversarial))
        print(f"{case.name}: round {turn} of {repeats}, {name}", file=sys.stderr)
    mine = seconds["robustkit"]
    ratios = {name: statistics.median(a / b for a, b in zip(mine, times)) for name, times in seconds.items() if name != "robustkit"}
    return {
        "case": case.name,
        "images": len(case.x),
        "steps": case.steps,
        "eps": str(case.eps),
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "robust_accuracy": {name: statistics.mean(shares) for name, shares in robust.items()},
        "robustkit_time_over": ratios,
        "rounds": seconds,
    }


def print_case(found: dict[str, Any]) -> None:
    """One table a case."""
    rows = []
    for name, median in found["seconds"].items():
        share = found["robust_accuracy"].get(name)
        ratio = found["robustkit_time_over"].get(name)
        rows.append([name, f"{median:.3f} s", "" if ratio is None else f"{ratio:.2f}", "" if share is None else f"{share:.4f}"])
    title = f"{found['case']}: {found['images']} images, {found['steps']} steps, l_inf {found['eps']}"
    listing(title, rows, ["who", "median time", "robustkit's time over theirs", "robust accuracy"])


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "threads": str(torch.get_num_threads())}
    for name in ("robustkit", "torch", "torchvision", "foolbox", "torchattacks"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "from the source tree" if name == "robustkit" else "not installed"
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; exit code as robustkit's for bad input or missing data."""
    parser = options.parser("PGD side by side with Foolbox, torchattacks and the physical limit.", clock=True)
    parser.add_argument("--models", nargs="*", default=["zoo:mnist-standard", "zoo:mnist-pgd"], help="models for MNIST at l_inf 0.3")
    parser.add_argument("--no-resnet", action="store_true", help="leave out the overhead comparison")
    parser.add_argument("--n", type=int, default=512, help="MNIST test images (default 512)")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=7, help="measured rounds (default 7)")
    parser.add_argument("--data-root", metavar="DIR", help="where MNIST lies (or set ROBUSTKIT_DATA)")
    parser.add_argument("--peers-first", action="store_true", help="the others' rounds before robustkit's; for one model a call")
    chosen = options.parse(parser, arguments)
    if chosen.peers_first and len(chosen.models) + (not chosen.no_resnet) != 1:
        parser.error("--peers-first is for one model a call: name one with --models and give --no-resnet, or give --models alone")
    try:
        cases = [mnist_case(spec, chosen) for spec in chosen.models] + ([] if chosen.no_resnet else [resnet_case()])
    except RobustkitError as problem:
        print(f"pgd_speed: {problem}", file=sys.stderr)
        return problem.exit_code
    found = []
    for case in cases:
        found.append(measure(case, chosen.repeats, options.clock_of(chosen), chosen.peers_first))
        if not chosen.json:
            print_case(found[-1])
    if chosen.json:
        print(json.dumps({"machine": machine(), "cases": found}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

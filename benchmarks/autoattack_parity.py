"""The standard suite against the official AutoAttack: robust accuracy and time, in one process on the same images.

    python benchmarks/autoattack_parity.py mnist-cnn-a-adv.safetensors --data mnist:n=500 --threat linf:0.3

Needs the authors' package (pip install git+https://github.com/fra31/auto-attack). `robustkit` is the
suite without certificates in front; `certified` has them. Clean errors, data and model loading are
outside nobody's time: each contender gets the images in memory and does everything else itself.
"""

from __future__ import annotations

import importlib
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import options
import torch
from contenders import Deployed

import robustkit
from robustkit import Classifier, load_data, load_model
from robustkit.errors import Missing, RobustkitError
from robustkit.tables import listing
from robustkit.threats import Threat, load_threat

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
Found = dict[str, float]
"""Robust accuracy after each stage, in order."""


class _Log:
    """Takes what the official code reports."""

    def __init__(self) -> None:
        self.after: Found = {}

    def log(self, text: str) -> None:
        """One line of its output."""
        found = re.search(r"robust accuracy after (\S+): ([\d.]+)%", text)
        if found:
            self.after[found[1].lower()] = float(found[2]) / 100


def official(classifier: Classifier, x: torch.Tensor, y: torch.Tensor, threat: Threat, batch: int) -> Callable[[int], Found]:
    """The authors' standard evaluation; raises Missing where their package is not installed."""
    try:
        package: Any = importlib.import_module("autoattack")
    except ImportError as problem:
        raise Missing("the official AutoAttack is not here: pip install git+https://github.com/fra31/auto-attack") from problem
    model = Deployed(classifier).to(classifier.device)

    def run(seed: int) -> Found:
        log, device = _Log(), str(classifier.device)
        adversary = package.AutoAttack(model, norm=NORMS[threat.name], eps=float(threat.eps), seed=seed, device=device)
        adversary.logger = adversary.apgd.logger = adversary.apgd_targeted.logger = log
        adversary.run_standard_evaluation(x.to(classifier.device), y.to(classifier.device), bs=batch)
        return log.after

    return run


def ours(classifier: Classifier, x: torch.Tensor, y: torch.Tensor, threat: Threat, certifiers: list[str] | None) -> Callable[[int], Found]:
    """The suite `standard`, with the run folder and everything that is judged and stored."""

    def run(seed: int) -> Found:
        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, Any] = {"certifiers": certifiers, "seed": seed, "out": f"{folder}/run", "device": str(classifier.device)}
            done = robustkit.evaluate(classifier, (x, y), threat, progress=False, report=False, **options)
            return {s["name"]: s["robust_accuracy_at_most"] for s in done.summary()["stages"]}

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = options.parser((__doc__ or "").split("\n")[0], clock=True)
    parser.add_argument("model")
    parser.add_argument("--data", default="mnist:n=500")
    parser.add_argument("--data-root")
    parser.add_argument("--threat", default="linf:0.3")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--official-batch", type=int, default=250, help="its own default: 250")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--without", nargs="*", default=[], choices=["official", "robustkit", "certified"])
    chosen = options.parse(parser, arguments)
    clock = options.clock_of(chosen)
    try:
        threat = load_threat(chosen.threat)
        classifier = load_model(chosen.model, device=chosen.device)
        x, y = load_data(chosen.data, chosen.data_root)
        contenders: dict[str, Callable[[], Callable[[int], Found]]] = {
            "official": lambda: official(classifier, x, y, threat, chosen.official_batch),
            "robustkit": lambda: ours(classifier, x, y, threat, ["none"]),
            "certified": lambda: ours(classifier, x, y, threat, None),
        }
        runs = {name: make() for name, make in contenders.items() if name not in chosen.without}
    except RobustkitError as problem:
        print(f"autoattack_parity: {problem}", file=sys.stderr)
        return problem.exit_code
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    accuracies: dict[str, list[Found]] = {name: [] for name in runs}
    for seed in range(chosen.repeats):
        for name, run in runs.items():
            start = clock()
            accuracies[name].append(run(seed))
            seconds[name].append(clock() - start)
    rows = []
    for name in runs:
        ratio = ""
        if "official" in runs:
            ratio = f"{statistics.median(a / b for a, b in zip(seconds[name], seconds['official'])):.2f}"
        stages = [" ".join(f"{stage} {100 * value:.1f}" for stage, value in one.items()) for one in accuracies[name]]
        rows.append([name, f"{statistics.median(seconds[name]):.1f} s", ratio, "; ".join(stages)])
    if chosen.json:
        print(json.dumps({"seconds": seconds, "accuracies": accuracies, "threads": torch.get_num_threads(), "torch": torch.__version__}))
    else:
        title = f"{chosen.model} on {chosen.data}, {threat.spec}"
        listing(title, rows, ["contender", "time", "/ official", "robust accuracy after"])
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Recurrent networks with and without state denoising, on the tasks of Mozer et al. 2018 (1805.08394): a study.

    python benchmarks/attractor_rnn.py [--task parity] [--arms rnn,sdrnn+task] [--replications 10]

Every replication has training data of its own, the same for all arms. Accuracies are means over
replications at the look with the best training accuracy, with the median and the standard error of
the mean; `gain` is the mean of the differences from the arm rnn, replication by replication.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from robustkit.defenses import sequence_tasks
from robustkit.defenses.attractor_rnn import ARMS, Settings
from robustkit.defenses.attractor_training import Replicated, replicate
from robustkit.defenses.sequence_tasks import Sequences
from robustkit.errors import RobustkitError
from robustkit.tables import listing

PARITY = Settings()
MAJORITY = Settings(noise=0.25, steps=5, lr=0.002, epochs=2500)
REBER = Settings(hidden=20, attractor=40, noise=0.25, steps=5, lr=0.002, epochs=2500)
SYMMETRY = Settings(hidden=50, attractor=100, noise=0.25, steps=5, lr=0.003, epochs=2500, batch=2500, start=100)

TASKS: dict[str, tuple[Callable[[Tensor], Sequences], Settings]] = {
    "parity": (sequence_tasks.parity, PARITY),
    **{f"majority-{n}": (partial(sequence_tasks.majority, length=n), MAJORITY) for n in (11, 17, 23, 29)},
    **{f"reber-{n}": (partial(sequence_tasks.reber, train=n), REBER) for n in (50, 100, 200, 400, 800)},
    "symmetry": (sequence_tasks.symmetry, SYMMETRY),
}
"""The paper's tasks and constants; it does not print the epochs of reber and symmetry."""


def summary(task: str, arm: str, found: Replicated, plain: Replicated | None, seconds: float) -> dict[str, Any]:
    """One row: figures of every test set, with the gain over the arm without attractor net."""
    tests = {}
    for name, values in found.tests.items():
        row = {"mean": float(values.mean()), "median": float(values.median()), "error": _error(values), "all": values.tolist()}
        if plain is not None and plain is not found:
            apart = values - plain.tests[name]
            row |= {"gain": float(apart.mean()), "gain_error": _error(apart)}
        tests[name] = row
    known = {"train": float(found.train.mean()), "learned": int((found.train == 1).sum()), "replications": len(found.train)}
    left = float(found.denoising.mean())
    return {"task": task, "arm": arm, **known, "tests": tests, "noise_left": None if left != left else left, "seconds": seconds}


def _error(values: Tensor) -> float | None:
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else None


def run(task: str, arms: Sequence[str], replications: int, seed: int, epochs: int | None) -> list[dict[str, Any]]:
    """All arms on one task."""
    make, settings = TASKS[task]
    settings = settings if epochs is None else replace(settings, epochs=epochs)
    rows, plain = [], None
    for arm in arms:
        start = time.perf_counter()
        with tqdm(total=settings.epochs, desc=f"{task} {arm}", unit="epoch", disable=None) as bar:

            def tell(epoch: int, training: int, bar: Any = bar) -> None:
                bar.update(epoch - bar.n)
                bar.set_postfix(training=training)

            found = replicate(make, arm, settings, replications, seed, tell)  # type: ignore[arg-type]
        plain = found if arm == "rnn" else plain
        rows.append(summary(task, arm, found, plain, time.perf_counter() - start))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; exit code as robustkit's for bad input."""
    parser = argparse.ArgumentParser(description="State-denoised recurrent networks against plain ones.")
    parser.add_argument("--task", action="append", choices=list(TASKS), help="task (default parity); may be given several times")
    parser.add_argument("--arms", default="rnn,sdrnn+task", help=f"of {', '.join(ARMS)} (default rnn,sdrnn+task)")
    parser.add_argument("--replications", type=int, default=10, help="networks an arm, trained at once (default 10; the paper has 100)")
    parser.add_argument("--epochs", type=int, help="epochs at most (default the task's own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    tasks = chosen.task or ["parity"]
    try:
        rows = [row for task in tasks for row in run(task, chosen.arms.split(","), chosen.replications, chosen.seed, chosen.epochs)]
    except RobustkitError as problem:
        print(f"attractor_rnn: {problem}", file=sys.stderr)
        return problem.exit_code
    machine = {"platform": platform.platform(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    if chosen.json:
        print(json.dumps({"machine": machine, "seed": chosen.seed, "rows": rows}, indent=2))
        return 0

    def number(value: float | None, form: str = ".3f") -> str:
        return "-" if value is None else format(value, form)

    lines = []
    for row in rows:
        for name, test in row["tests"].items():
            head = [row["task"], row["arm"], f"{row['learned']}/{row['replications']}", name]
            figures = [number(test["mean"]), number(test["median"]), number(test["error"]), number(test.get("gain"), "+.3f")]
            lines.append([*head, *figures, number(test.get("gain_error")), number(row["noise_left"], ".2f"), f"{row['seconds']:.0f} s"])
    title = f"accuracy, seed {chosen.seed}; " + ", ".join(f"{k} {v}" for k, v in machine.items())
    listing(title, lines, ["task", "arm", "learned", "test", "mean", "median", "±", "gain", "±", "left", "time"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The transfer study of the bundled models: who fools whom, and the figures that explain it.

    python benchmarks/transfer.py --data digits --threat linf:0.15
    python benchmarks/transfer.py --data mnist:n=1000 --threat linf:0.2 --data-root DIR

`--sets N` also trains every surrogate's recipe anew on N random halves of the training split (digits:
some minutes), which the variability of its loss needs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from robustkit import load_data, load_model, streams
from robustkit.attacks.transfer_study import transfer_study
from robustkit.data import Data
from robustkit.errors import RobustkitError
from robustkit.models import zoo_names
from robustkit.tables import listing


def replicas(name: str, count: int, training: Data, folder: Path) -> list[Any]:
    """The bundled model, then its recipe trained on `count` random halves of the training split."""
    from robustkit.defenses import train

    model = load_model(name)
    models: list[Any] = [model]
    for number in range(count):
        order = torch.argsort(streams.row_keys(number, "halves", training.index))
        half = training.subset(order[: len(training) // 2].sort().values)
        out = folder / f"{name.removeprefix('zoo:')}-{number}.safetensors"
        made = train(model.metadata["recipe"], half, arch=model.metadata["architecture"], out=out, seed=number, progress=False)
        models.append(made.classifier("cpu"))
        print(f"{name}: trained on half {number + 1} of {count}", file=sys.stderr)
    return models


def study(names: Sequence[str], data: Data, threat: str, sets: int, root: str | None) -> list[dict[str, Any]]:
    """Every bundled model as the target of all others and of itself."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        training = load_data(data.name, root=root, split="train") if sets else None
        groups = {name: [load_model(name)] if training is None else replicas(name, sets, training, Path(folder)) for name in names}
        for target in names:
            rows += [asdict(row) for row in transfer_study(target, groups, data, threat)]
            print(f"{target}: done", file=sys.stderr)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit code as robustkit's for bad input or missing data."""
    parser = argparse.ArgumentParser(description="The transfer study of the bundled models.")
    parser.add_argument("--data", default="digits", help="digits or mnist, with options such as n=500 (default digits)")
    parser.add_argument("--threat", default="linf:0.15", help="linf, l2 or l1 with a budget (default linf:0.15)")
    parser.add_argument("--models", nargs="*", help="models (default: the bundled ones for the data)")
    parser.add_argument("--sets", type=int, default=0, help="training sets for the variability of the loss (default 0: left out)")
    parser.add_argument("--data-root", metavar="DIR", help="where data sets lie (or set ROBUSTKIT_DATA)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    chosen = parser.parse_args(arguments)
    try:
        data = load_data(chosen.data, root=chosen.data_root)
        names = chosen.models or [f"zoo:{name}" for name in zoo_names() if name.startswith(data.name)]
        rows = study(names, data, chosen.threat, chosen.sets, chosen.data_root)
    except RobustkitError as problem:
        print(f"transfer: {problem}", file=sys.stderr)
        return problem.exit_code
    if chosen.json:
        print(json.dumps(rows, indent=1))
        return 0
    shown = []
    for row in rows:
        spread = "" if row["variability"] is None else f"{row['variability']:.3g}"
        sizes = [f"{row['target_gradient']:.3g}", f"{row['alignment']:.2f}", spread]
        rates = [f"{100 * row[key]:.1f} %" for key in ("surrogate_rate", "transfer_rate", "white_box_rate")]
        shown.append([row["target"], row["surrogate"], *sizes, *rates])
    columns = ["target", "surrogate", "target's gradient", "alignment", "variability", "fools surrogate", "fools target", "white box"]
    listing(f"transfer on {data.spec}, {chosen.threat}; shares of the images that the target gets right", shown, columns)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

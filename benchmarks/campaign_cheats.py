"""Models that hide adversarial examples, each evaluated with the suite `standard`; sound models beside them.

    python benchmarks/campaign_cheats.py [--n 60] [--kinds saturation,batch] [--only NAME] [--no-sound] [--json]

A figure is WRONG where a robust accuracy is established that exceeds the honest twin's by more than two images: a check that
ends in an error beside it excuses nothing. A sound model is FLAGGED where a check ends in an error or its robust accuracy is
not established. Exit code 1 for either. `loose` counts cheats whose share at most, though not established, lies more than
10 % above the twin's.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import options
import torch
from cheating_models import CHEATS, SOUND, Cheat, bundled
from torch import Tensor, nn

import robustkit as rk

BUDGET = "linf:0.1"
LOOSE = 0.1


@dataclass
class Row:
    """What robustkit said of one model."""

    kind: str
    name: str
    clean: float | None = None
    robust: float | None = None
    """None where it is not established."""
    at_most: float | None = None
    honest: float | None = None
    """What the same command leaves of the twin."""
    errors: str = ""
    """Checks that ended in an error."""
    warnings: str = ""
    verdict: str = ""
    """right, caught (not established), WRONG, refused (with the reason), FLAGGED, or CRASH for any exception that is no robustkit error."""
    seconds: float = 0.0


def judged(model: nn.Module, data: tuple[Tensor, Tensor], row: Row, **asked: Any) -> Row:
    """The row, with what `evaluate` finds."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        try:
            run = rk.evaluate(model, data, BUDGET, certifiers="none", progress=False, report=False, out=Path(place) / "run", **asked)
        except rk.RobustkitError as problem:
            row.verdict = f"refused: {str(problem)[:200]}"
        except Exception as problem:  # what this campaign looks for
            row.verdict = f"CRASH {type(problem).__name__}: {str(problem)[:200]}"
        else:
            said = run.summary()
            row.clean, row.robust = said["clean_accuracy"], said["robust_accuracy"]
            row.at_most = said.get("robust_accuracy_at_most", row.robust)
            for status in ("error", "warn"):
                found = [one["check"] for one in said["diagnostics"] if one["status"] == status and one["check"] != "enough samples"]
                setattr(row, "errors" if status == "error" else "warnings", ", ".join(found))
    row.seconds = time.perf_counter() - start
    return row


def digits(n: int | None = None) -> tuple[Tensor, Tensor]:
    """The first test images in [0,1] and their labels; the training images without `n`."""
    found = rk.load_data("digits:split=train" if n is None else f"digits:n={n}")
    return found.images(slice(None)), found.y


def cheats(chosen: Sequence[Cheat], n: int) -> Iterator[Row]:
    """A row for every cheat; twins are evaluated once."""
    x, y = digits(n)
    net = bundled("digits-standard")
    twins: dict[Any, float] = {}
    for cheat in chosen:
        if cheat.twin not in twins:
            twin = cheat.twin(net, x) if cheat.twin else net
            plain = judged(twin, (x.clone(), y.clone()), Row("honest", "the twin"))
            assert plain.at_most is not None, plain.verdict
            twins[cheat.twin] = plain.at_most
        mine = x.clone()
        row = Row(cheat.kind, cheat.name, honest=twins[cheat.twin])
        try:
            judged(cheat.make(copy.deepcopy(net), x), (mine, y.clone()), row)
        finally:
            changed = int((mine != x).sum())
        if changed:
            row.verdict = f"WRONG: {changed} values of the user's images were overwritten"
        if not row.verdict:
            high = row.robust is not None and row.robust > twins[cheat.twin] + 2 / n + 1e-9
            row.verdict = "WRONG" if high else "caught" if row.robust is None else "right"
        yield row


def trained(make: Callable[[], nn.Module], epochs: int = 8) -> nn.Module:
    """A network that has learnt the digits."""
    x, y = digits()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older weight_norm is deprecated, and people have it
        torch.manual_seed(0)
        net = make().train()
        optimiser = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(y)).chunk(len(y) // 128):
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    return net.eval()


def sound(n: int) -> Iterator[Row]:
    """A row for every sound model."""
    noise = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(12, dtype=torch.int64)
    models: list[tuple[str, Callable[[], nn.Module]]] = [
        *((f"zoo:{name}", partial(bundled, name)) for name in ("digits-standard", "digits-pgd", "digits-ibp")),
        *((name, partial(trained, make)) for name, make in SOUND.items()),
        ("resnet18, untrained, on noise", _resnet),
    ]
    for name, make in models:
        images, asked = (noise, {"labels": "predicted"}) if make is _resnet else (digits(n), {})
        row = judged(make(), images, Row("sound", name), **asked)
        if not row.verdict:
            row.verdict = "FLAGGED" if row.errors or row.robust is None else "right"
        yield row


def _resnet() -> nn.Module:
    import torchvision

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: nn.Module = torchvision.models.resnet18(num_classes=10).eval()
    return net


def tally(rows: Sequence[Row]) -> dict[str, int]:
    """Counts of the whole campaign."""
    cheating = [row for row in rows if row.kind != "sound"]
    loose = [row for row in cheating if row.at_most is not None and row.honest is not None and row.at_most > row.honest + LOOSE]
    return {
        "cheats": len(cheating),
        "wrong": sum(row.verdict.startswith("WRONG") for row in cheating),
        "right": sum(row.verdict == "right" for row in cheating),
        "caught": sum(row.verdict == "caught" for row in cheating),
        "refused": sum(row.verdict.startswith("refused") for row in rows),
        "loose": len(loose),
        "crashes": sum(row.verdict.startswith("CRASH") for row in rows),
        "sound": len(rows) - len(cheating),
        "flagged": sum(row.kind == "sound" and row.verdict != "right" for row in rows),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    made = options.parser(__doc__.splitlines()[0] if __doc__ else "")
    made.add_argument("--n", type=int, default=60, help="test images of the digits (default 60)")
    made.add_argument("--kinds", help="only these kinds of cheats, separated by commas")
    made.add_argument("--only", help="only cheats whose name contains this")
    made.add_argument("--no-sound", action="store_true", help="leave out the sound models")
    chosen = options.parse(made, arguments)
    known = sorted({cheat.kind for cheat in CHEATS})
    kinds = chosen.kinds.split(",") if chosen.kinds is not None else known
    if unknown := set(filter(None, kinds)) - set(known):
        made.error(f"unknown kinds {', '.join(sorted(unknown))}: known: {', '.join(known)}")
    picked = [cheat for cheat in CHEATS if cheat.kind in kinds and (chosen.only or "") in cheat.name]
    sources = [cheats(picked, chosen.n), *([] if chosen.no_sound else [sound(chosen.n)])]
    if not chosen.json:
        print(*("kind", "model", "clean", "robust", "at most", "honest", "errors", "warnings", "verdict", "seconds"), sep=" | ")
    rows = []
    for row in itertools.chain(*sources):
        rows.append(row)
        if not chosen.json:
            figures = [_percent(value) for value in (row.clean, row.robust, row.at_most, row.honest)]
            print(row.kind, row.name, *figures, row.errors, row.warnings, row.verdict, f"{row.seconds:.0f}", sep=" | ", flush=True)
    counts = tally(rows)
    if chosen.json:
        print(json.dumps({"counts": counts, "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        print(", ".join(f"{count} {what}" for what, count in counts.items()))
    return int(counts["wrong"] + counts["crashes"] + counts["flagged"] > 0)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


if __name__ == "__main__":
    sys.exit(main())

"""Randomized smoothing: sampling against a bare loop, and what ending early saves.

    python benchmarks/smoothing_speed.py [--models zoo:mnist-smoothing] [--threads 1 --cpu-time]

Sampling: draws a second of `counts` (every draw keyed by image and number, votes counted per image)
over those of `model(x + sigma * randn)` and nothing else, the same module in batches of the same
size; rounds take turns, the figure is the median of the ratios.

Ending early: certified accuracy at a radius and the draws it took, on the same images: all n draws of
everything that is selected right (Cohen et al. 2019), giving up what is out of reach (the default
here), and certificates at several looks that share alpha. The bracket of a difference is that of
flipped images alone: two runs on other draws differ as much.
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

from robustkit import Classifier, load_data, load_model, streams
from robustkit.certify.smoothing import SmoothingCertifier
from robustkit.core.comparisons import float_below
from robustkit.errors import RobustkitError
from robustkit.models.smoothed import ROWS, Smoothed, Smoothing, smoothed
from robustkit.numerics import exact_mode
from robustkit.spec import number
from robustkit.tables import listing
from robustkit.threats import load_threat


def throughput(model: Classifier, x: torch.Tensor, draws: int, repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Median draws a second of both and the median ratio, after one unmeasured round."""
    network = model.module
    assert isinstance(network, Smoothed)
    keys, rows = streams.row_keys(0, "speed", torch.arange(len(x))).to(x.device), ROWS[x.device.type]
    sigma = float(network.smoothing.sigma)

    def bare() -> None:
        for image in x:
            for _ in range(draws // rows):
                network.plain(image + sigma * torch.randn(rows, *image.shape, device=x.device))

    runs: dict[str, Callable[[], Any]] = {"bare": bare, "counts": lambda: network.counts(x, keys, 0, draws)}
    seconds = options.in_turn(runs, repeats, clock, x.device)
    ratio = statistics.median(theirs / mine for mine, theirs in zip(seconds["counts"], seconds["bare"]))
    return {"rows": rows, "ratio": ratio} | {
        f"{name} draws/s": draws * len(x) / statistics.median(times) for name, times in seconds.items()
    }


def early(model: Classifier, x: torch.Tensor, y: torch.Tensor, radius: str, n: int, looks: Sequence[int]) -> list[dict[str, Any]]:
    """Certified accuracy at a radius and draws an image, for the full run and for every number of looks."""
    threat = load_threat(f"l2:{radius}")
    eps = torch.full((len(x),), float_below(threat.eps), dtype=torch.float64, device=x.device)
    found: list[dict[str, Any]] = []
    for name, count in [("all draws", 1), *((f"looks={count}", count) for count in looks)]:
        work = SmoothingCertifier(n=n, looks=count).sample(model, threat, 0)
        with exact_mode():
            radii, _, draws, *_ = work(torch.arange(len(x)), x, y, None if name == "all draws" else eps, lambda: None)
        certified = (radii >= float_below(threat.eps)).double()
        found.append({"how": name, "certified": float(certified.mean()), "draws": float(draws.double().mean())})
    return [one | {"share": one["draws"] / found[0]["draws"]} for one in found]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both; exit code as robustkit's for bad input or missing data."""
    parser = options.parser("Randomized smoothing: sampling against a bare loop, and what ending early saves.", clock=True)
    parser.add_argument("--models", nargs="+", default=["zoo:mnist-smoothing"], help="base models, of MNIST's size")
    parser.add_argument("--sigma", default="0.5")
    parser.add_argument("--radius", nargs="+", default=["0.5", "1.0"], help="l2 radii to decide")
    parser.add_argument("--n", type=int, default=10_000, help="draws an image (default 10000)")
    parser.add_argument("--images", type=int, default=100, help="images to certify (default 100)")
    parser.add_argument("--looks", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--draws", type=int, default=4096, help="draws an image in a round of the speed test")
    parser.add_argument("--repeats", type=int, default=15, help="measured rounds (default 15)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--data-root", metavar="DIR", help="where MNIST lies (or set ROBUSTKIT_DATA)")
    chosen = options.parse(parser, arguments)
    clock = options.clock_of(chosen)
    speeds, savings = {}, {}
    try:
        data = load_data(f"mnist:n={chosen.images}", root=chosen.data_root)
        for spec in chosen.models:
            model = smoothed(load_model(spec, device=chosen.device), Smoothing(number(chosen.sigma)))
            x, y = data.x.to(model.device), data.y.to(model.device)
            speeds[spec] = throughput(model, x[:4], chosen.draws, chosen.repeats, clock)
            savings[spec] = {radius: early(model, x, y, radius, chosen.n, chosen.looks) for radius in chosen.radius}
    except RobustkitError as problem:
        print(f"smoothing_speed: {problem}", file=sys.stderr)
        return problem.exit_code
    machine = {"platform": platform.platform(), "torch": torch.__version__, "threads": torch.get_num_threads(), "device": chosen.device}
    if chosen.json:
        print(json.dumps({"machine": machine, "sampling": speeds, "early": savings}, indent=2))
        return 0
    rows = [[n, f["rows"], f"{f['bare draws/s']:.0f}", f"{f['counts draws/s']:.0f}", f"{f['ratio']:.1%}"] for n, f in speeds.items()]
    listing(", ".join(f"{k} {v}" for k, v in machine.items()), rows, ["model", "batch", "bare draws/s", "counts draws/s", "ratio"])
    rows = [
        [name, radius, f["how"], f"{f['certified']:.1%}", f"{f['draws']:.0f}", f"{f['share']:.1%}"]
        for name, radii in savings.items()
        for radius, rounds in radii.items()
        for f in rounds
    ]
    title = f"sigma {chosen.sigma}, n {chosen.n}, {chosen.images} images"
    listing(title, rows, ["model", "l2 radius", "how", "certified", "draws an image", "of all draws"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

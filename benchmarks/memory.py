"""Peak memory of `robustkit evaluate` for few and for many samples, each in a process of its own.

    python benchmarks/memory.py --data-root DIR

Beyond the images themselves it must not grow with the number of samples. Peak resident set sizes
come from the kernel (wait4), so this runs where Unix does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustkit.tables import listing

MIB = 2**20


def peak(command: Sequence[str]) -> tuple[int, str]:
    """Run a command; its peak resident set size in bytes and what it printed. Raises SystemExit when it fails."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"memory: {' '.join(command)} ended with exit code {process.returncode}")
        out.seek(0)
        return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), out.read()


def measure(arguments: argparse.Namespace, n: int) -> dict[str, Any]:
    """One evaluation of n MNIST images."""
    from robustkit import load_data

    data = load_data(f"mnist:n={n}", root=arguments.data_root)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "robustkit", "evaluate", arguments.model, "--data", data.spec, "--threat", arguments.threat]
        command += ["--attack", arguments.attack, "--certifier", "none", "--out", str(Path(folder) / "run"), "--json"]
        if arguments.data_root:
            command += ["--data-root", arguments.data_root]
        found, text = peak(command)
    held = data.values.element_size() * data.values.nelement()
    return {"n": n, "peak": found, "images": held, "beyond": found - held, "robust_accuracy": json.loads(text)["robust_accuracy_at_most"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every n, print a table or JSON."""
    parser = argparse.ArgumentParser(description="Peak memory of robustkit evaluate on MNIST.")
    parser.add_argument("--model", default="zoo:mnist-pgd")
    parser.add_argument("--threat", default="linf:0.3")
    parser.add_argument("--attack", default="pgd:steps=5")
    parser.add_argument("--n", type=int, nargs="*", default=[500, 10000])
    parser.add_argument("--data-root", metavar="DIR", help="where MNIST lies (or set ROBUSTKIT_DATA)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    chosen = parser.parse_args(arguments)
    found = [measure(chosen, n) for n in chosen.n]
    if chosen.json:
        print(json.dumps(found, indent=1))
        return 0
    rows = [[f["n"], *(f"{f[key] / MIB:.1f}" for key in ("peak", "images", "beyond")), f"{f['robust_accuracy']:.4f}"] for f in found]
    listing(f"{chosen.model}, {chosen.threat}, {chosen.attack}", rows, ["n", "peak MiB", "images MiB", "beyond MiB", "robust accuracy"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

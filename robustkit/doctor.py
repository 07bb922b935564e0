"""What `robustkit doctor` looks at: everything a run needs, each with its cure. Prints nothing."""

from __future__ import annotations

import importlib
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from robustkit.errors import RobustkitError

Status = Literal["ok", "warn", "missing"]


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    status: Status
    detail: str
    cure: str = ""
    """What to do; empty where the status is ok."""


def examine(root: str | Path | None = None, out: str | Path = "runs") -> list[Check]:
    """Look at this machine; never raises and changes nothing.

    Args:
        root: where data sets are looked for first, as in load_data.
        out: the folder runs are to be written to.
    """
    checks: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("python", _python),
        ("torch", _torch),
        ("cuda", _cuda),
        ("cpu threads", _threads),
        ("torchvision", _torchvision),
        ("foolbox", _foolbox),
        ("data", lambda: _data(root)),
        ("zoo", _zoo),
        ("run folder", lambda: _run_folder(Path(out))),
    ]
    found: list[Check] = []
    for name, look in checks:
        try:
            found.extend(look())
        except Exception as problem:  # a doctor that falls ill helps nobody
            found.append(Check(name, "warn", f"the check failed: {type(problem).__name__}: {problem}", "report this as a bug"))
    return found


def _python() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _torch() -> Iterator[Check]:
    import torch

    yield Check("torch", "ok", str(torch.__version__))


def _cuda() -> Iterator[Check]:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        cure = "install a CUDA driver" if built else "for GPU speed install a CUDA build of torch; everything works without"
        yield Check("cuda", "warn", "no CUDA device: runs use the CPU", cure)
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(number)
        yield Check(f"cuda:{number}", "ok", f"{about.name}, {about.total_memory / 2**30:.0f} GiB")


def _threads() -> Iterator[Check]:
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    used = torch.get_num_threads()
    text = f"torch uses {used} of {usable} usable CPUs"
    if used > usable:
        yield Check("cpu threads", "warn", text, f"set OMP_NUM_THREADS={usable}")
    else:
        yield Check("cpu threads", "ok", text)


def _torchvision() -> Iterator[Check]:
    from robustkit.torchvision_compat import torchvision

    try:
        module = torchvision()
    except RobustkitError as problem:
        yield Check("torchvision", "missing", str(problem), "pip install torchvision")
        return
    compiled = module.extension._has_ops()
    note = "" if compiled else " (without its compiled operators, which robustkit does not need)"
    yield Check("torchvision", "ok", f"{module.__version__}{note}")


def _foolbox() -> Iterator[Check]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own, on import
            importlib.import_module("foolbox")
        yield Check("foolbox", "ok", version("foolbox"))
    except PackageNotFoundError:
        yield Check("foolbox", "ok", "imported, version unknown")
    except Exception as problem:  # whatever its import raises
        yield Check("foolbox", "missing", f"cannot be imported: {type(problem).__name__}: {problem}", "pip install foolbox")


def _data(root: str | Path | None) -> Iterator[Check]:
    from robustkit.data import load_data, locate
    from robustkit.data.roots import bases
    from robustkit.data.torchvision_sets import KNOWN

    digits = load_data("digits:split=all")
    yield Check("data digits", "ok", f"{len(digits)} images, with scikit-learn")
    looked = ", ".join(str(base.absolute()) for base in bases(root))
    for name in KNOWN:
        place = locate(name, root)
        if place is not None:
            yield Check(f"data {name}", "ok", f"in {place.absolute()}")
        else:
            yield Check(f"data {name}", "warn", f"not found in {looked}", "give its folder with --data-root or ROBUSTKIT_DATA")


def _zoo() -> Iterator[Check]:
    from robustkit.models import load_model, zoo_names

    names = zoo_names()
    broken = []
    for name in names:
        try:
            load_model(f"zoo:{name}")
        except RobustkitError as problem:
            broken.append(str(problem))
    if not names or broken:
        yield Check("zoo", "missing", "; ".join(broken) or "no model came with this installation", "install robustkit again")
    else:
        yield Check("zoo", "ok", f"{len(names)} models load: {', '.join(names)}")


def _run_folder(out: Path) -> Iterator[Check]:
    nearest = out.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        yield Check("run folder", "ok", f"{out.absolute()} can be written")
    else:
        yield Check("run folder", "warn", f"{out.absolute()} cannot be written ({nearest})", "give another folder with --out")

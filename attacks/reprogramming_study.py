"""A reprogramming from a model and a task to figures and files: the program, its control, a picture.

The program is trained on the task's training split and judged on images held back from it. Beside
its accuracy stand that of the grey frame (what the victim does without a program), of the largest class
and of the control, the same training on random weights.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import robustkit
from robustkit import streams
from robustkit.attacks.counting_squares import counting_squares
from robustkit.attacks.reprogramming import Program, Reprogramming, random_twin
from robustkit.attacks.reprogramming_figure import draw
from robustkit.classifier import pick_device
from robustkit.data import Data, load_data
from robustkit.errors import BadInput
from robustkit.models import load_model
from robustkit.models.weights import pack, read_checkpoint
from robustkit.spec import Spec, build, canonical, parse
from robustkit.store import write_atomic
from robustkit.summary import interval

HELD_BACK = 0.2
"""Share that is held back of sets without a test split."""


@dataclass(frozen=True)
class _Squares:
    n: int = 2000
    cell: int = 3

    positional = ()


def reprogram(
    model: Any,
    task: str | Data,
    *,
    out: str | Path,
    settings: str | Reprogramming = "reprogramming",
    control: bool = True,
    seed: int = 0,
    device: str = "auto",
    root: str | None = None,
    allow_code: bool = False,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train a program, judge it and its control, write both files; returns the figures.

    Args:
        model: the victim or its specification.
        task: labelled images, a DATA specification, or counting-squares:n=2000,cell=3.
        out: the program, FILE.safetensors; a picture is drawn beside it, FILE.png.
        settings: the fields of Reprogramming, for example reprogramming:epochs=30,scale=2.
        control: whether to train the control as well.
        progress: whether to draw a bar on stderr; None draws one when stderr is a terminal.

    Raises BadInput (settings, task and victim that do not fit, a file that cannot be written) and Missing.
    """
    began = time.monotonic()
    method = build(Reprogramming, parse(settings), "study") if isinstance(settings, str) else settings
    path = Path(out)
    if path.suffix != ".safetensors" or path.is_dir():
        raise BadInput(f"--out {out}: expected a file that ends in .safetensors, for example program.safetensors")
    victim = load_model(model, device=pick_device(device), allow_code=allow_code)
    training, held = held_back(task, root)
    if victim.input_shape is None:
        raise BadInput(
            f"the model {victim.spec} does not say what images it takes: save it as safetensors, or return Classifier(..., input_shape=)"
        )
    victim.check(torch.zeros(1, *victim.input_shape))
    twin = random_twin(victim, seed) if control else None
    steps = method.epochs * -(-len(training) // method.batch) * (1 if twin is None else 2)
    hidden = None if progress is None else not progress
    with tqdm(total=steps, desc="reprogram", unit="step", disable=hidden) as bar:

        def tick(loss: float) -> None:
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

        blank = method.start(victim, training)
        program = method.train(victim, training, seed, tick)
        accuracy = program.accuracy(victim, held)
        other = None if twin is None else method.train(twin, training, seed, tick).accuracy(twin, held)
    figures = {
        "accuracy": accuracy,
        "interval95": interval(accuracy, len(held)),
        "training_accuracy": program.accuracy(victim, training),
        "control_accuracy": other,
        "grey_accuracy": blank.accuracy(victim, held),
        "largest_class": float(held.y.bincount().max()) / len(held),
    }
    summary = {
        "schema_version": 1,
        "victim": {"spec": victim.spec, "sha256": victim.sha256},
        "task": {"spec": training.spec, "digest": training.digest, "n": len(training), "held_back": len(held)},
        **figures,
        "labels": program.labels.tolist(),
        "program_values": int(program.mask.sum()) * program.weight.shape[0],
        "settings": str(canonical(method, method.name)),
        "seed": seed,
    }
    picture = path.with_suffix(".png")
    try:
        write_atomic(path, pack({"weight": program.weight}, _metadata(summary, program)))
        write_atomic(picture, draw(program, victim, held, accuracy))
    except OSError as problem:
        raise BadInput(f"cannot write {path}: {problem.strerror or problem}") from problem
    return summary | {"seconds": time.monotonic() - began, "program": str(path), "picture": str(picture)}


def rows(summary: dict[str, Any]) -> list[list[str]]:
    """The figures of `reprogram` as a table of two columns."""

    def share(value: float | None) -> str:
        return "left out" if value is None else f"{100 * value:.1f} %"

    low, high = summary["interval95"]
    return [
        ["accuracy with the program", f"{share(summary['accuracy'])} of {summary['task']['held_back']} held-back images"],
        ["95 % interval", f"{share(low)} to {share(high)}"],
        ["on its training images", share(summary["training_accuracy"])],
        ["control: random weights", share(summary["control_accuracy"])],
        ["grey frame, no program", share(summary["grey_accuracy"])],
        ["always the largest class", share(summary["largest_class"])],
        ["values of the program", str(summary["program_values"])],
        ["settings", summary["settings"]],
        ["program", summary["program"]],
        ["picture", summary["picture"]],
    ]


def load_program(path: str | Path) -> Program:
    """The program in a file; raises BadInput for anything else."""
    held = read_checkpoint(Path(path))
    try:
        if held.metadata["kind"] != "robustkit program":
            raise KeyError
        height, width = (int(part) for part in held.metadata["image"].split("x"))
        labels = torch.tensor([int(part) for part in held.metadata["labels"].split(",")])
        return Program(held.tensors["weight"], (height, width), int(held.metadata["scale"]), labels)
    except (KeyError, ValueError) as problem:
        raise BadInput(f"{path} is no program: expected a file written by robustkit reprogram") from problem


def held_back(task: str | Data, root: str | None = None) -> tuple[Data, Data]:
    """The images a program is trained on and those it is judged on, which never overlap.

    The training and test split where there are two; else a fifth is held back by a hash of the index.
    """
    if not isinstance(task, str):
        return _divided(task)
    if task.partition(":")[0] == "counting-squares":
        chosen = build(_Squares, parse(task), "task")
        return counting_squares(chosen.n, chosen.cell, "train"), counting_squares(max(500, chosen.n // 4), chosen.cell, "test")
    training = load_data(task, root=root, split="train")
    held = load_data(_whole(task), root=root, split="test")
    same = (training.origin, training.sha256) == (held.origin, held.sha256)
    if same and bool(torch.isin(training.index, held.index).any()):
        return _divided(training)
    if held.classes < training.classes or held.shape != training.shape:
        raise BadInput(f"the task's splits do not fit each other: {training} and {held}")
    return training, held


def _whole(task: str) -> str:
    """The specification without its number of images, which is meant for the training."""
    try:
        spec = parse(task)
    except BadInput:
        return task
    return str(Spec(spec.name, spec.items, {key: value for key, value in spec.options.items() if key != "n"}))


def _divided(data: Data) -> tuple[Data, Data]:
    order = torch.argsort(streams.row_keys(0, "reprogramming/held-back", data.index), stable=True)
    count = max(1, round(HELD_BACK * len(data)))
    if count >= len(data):
        raise BadInput(f"the task {data.spec} has {len(data)} image(s): too few to hold some back")
    return data.subset(order[count:].sort().values), data.subset(order[:count].sort().values)


def _metadata(summary: dict[str, Any], program: Program) -> dict[str, str]:
    """What the file says of itself."""
    control = summary["control_accuracy"]
    return {
        "kind": "robustkit program",
        "image": f"{program.image[0]}x{program.image[1]}",
        "scale": str(program.scale),
        "labels": ",".join(map(str, summary["labels"])),
        "victim": str(summary["victim"]["spec"]),
        "victim_sha256": str(summary["victim"]["sha256"]),
        "task": str(summary["task"]["spec"]),
        "task_digest": str(summary["task"]["digest"]),
        "settings": summary["settings"],
        "seed": str(summary["seed"]),
        "accuracy": f"{summary['accuracy']:.6g}",
        "control_accuracy": "" if control is None else f"{control:.6g}",
        "robustkit": robustkit.__version__,
    }

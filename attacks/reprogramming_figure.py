"""A program as a picture: the frame, then images of the task in it with what the victim is made to say."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from robustkit.attacks.reprogramming import Program
from robustkit.classifier import Classifier
from robustkit.data import Data

EXAMPLES = 5


def draw(program: Program, victim: Classifier, task: Data, accuracy: float) -> bytes:
    """PNG of the program and the first held-back image of each of the first classes; wrong answers are marked."""
    classes = range(min(EXAMPLES, task.classes))
    found = [(task.y == k).nonzero()[:1, 0] for k in classes]
    shown = [int(where[0]) for where in found if len(where)]
    x = task.images(task.y.new_tensor(shown))
    said = program.predict(victim, x).tolist()
    figure = Figure(figsize=(1.9 * (len(shown) + 1), 2.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(shown) + 1, squeeze=False)[0]
    _show(axes[0], program.frame, "program")
    for axis, image, position, answer in zip(axes[1:], program.apply(x), shown, said):
        truth = int(task.y[position])
        verdict = "" if answer == truth else f", said {task.class_names[answer]}"
        _show(axis, image, f"{task.class_names[truth]}{verdict}\nclass {int(program.labels[answer])} of the victim")
    figure.suptitle(
        f"{victim.spec or 'victim'} made to do {task.name}: {100 * accuracy:.1f} % of {len(task)} held-back images", fontsize=10
    )
    made = io.BytesIO()
    figure.savefig(made, format="png", metadata={"Software": None})
    return made.getvalue()


def _show(axis: object, image: Tensor, title: str) -> None:
    values = image.permute(1, 2, 0).numpy()
    axis.imshow(values[..., 0] if values.shape[2] == 1 else values, cmap="gray", vmin=0, vmax=1)  # type: ignore[attr-defined]
    axis.set_title(title, fontsize=8)  # type: ignore[attr-defined]
    axis.set_axis_off()  # type: ignore[attr-defined]

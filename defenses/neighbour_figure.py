"""The neighbours of images as pictures: what a deep kNN answers with, and how sure it is."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from robustkit.defenses.deep_knn import NeighbourClassifier


def draw_neighbours(model: NeighbourClassifier, x: Tensor, shown: int = 8) -> bytes:
    """PNG of images x (N,C,H,W), a few of them, each with its nearest bank images at every layer.

    Neighbours of another class than the answer are titled in red.
    """
    found, p, names = model.neighbours(x), model.p_values(x), model.images.class_names
    answers, shown = model.scores(x).argmax(1).tolist(), min(shown, model.k)
    layers, top = list(found), p.topk(2, dim=1).values.tolist()
    figure = Figure(figsize=(0.75 * (shown + 1) + 0.6, 0.95 * len(layers) * len(x)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(layers) * len(x), shown + 1, squeeze=False)
    for i, answer in enumerate(answers):
        for j, layer in enumerate(layers):
            axes = grid[i * len(layers) + j]
            told = f"{names[answer]}: credibility {top[i][0]:.2f},\nconfidence {1 - top[i][1]:.2f}" if j == 0 else ""
            _show(axes[0], x[i] if j == 0 else None, told)
            at = found[layer][0][i, :shown].cpu()
            for axis, image, label in zip(axes[1:], model.images.images(at), model.images.y[at].tolist()):
                _show(axis, image, names[label], "black" if label == answer else "red")
            axes[1].text(-0.1, 0.5, f"layer {layer}", transform=axes[1].transAxes, rotation=90, va="center", ha="right", fontsize=6)
    made = io.BytesIO()
    figure.savefig(made, format="png", metadata={"Software": None})
    return made.getvalue()


def _show(axis: object, image: Tensor | None, title: str, color: str = "black") -> None:
    if image is not None:
        values = image.detach().cpu().permute(1, 2, 0).numpy()
        axis.imshow(values[..., 0] if values.shape[2] == 1 else values, cmap="gray", vmin=0, vmax=1)  # type: ignore[attr-defined]
    axis.set_title(title, fontsize=6, color=color)  # type: ignore[attr-defined]
    axis.set_axis_off()  # type: ignore[attr-defined]

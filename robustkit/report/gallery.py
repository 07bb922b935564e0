"""The gallery: clean | adversarial | ten times the difference, as small embedded PNGs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

from robustkit.report.runs import Run

GAIN = 10
"""The difference is drawn as 0.5 + GAIN x (adversarial - clean)."""
_PIXELS = 3_000_000
"""About as many pixels as one report embeds; fewer samples are shown of large images."""
_SIDE = 1024
"""Of a larger image every second, third, ... pixel is embedded."""


@dataclass(frozen=True)
class Picture:
    """One row of the gallery; images as data URIs."""

    clean: str
    adversarial: str
    difference: str
    index: int
    label: str
    predicted: str
    adversarial_class: str
    stage: str
    change: float
    """Largest change of any value."""


def pictures(run: Run) -> list[Picture]:
    """The gallery's samples with names for labels and stage; empty without a gallery."""
    if not run.gallery:
        return []
    clean = np.asarray(run.gallery["clean"], dtype=np.float32)
    adversarial = np.asarray(run.gallery["adversarial"], dtype=np.float32)
    shown = min(len(clean), max(4, _PIXELS // max(1, 3 * clean.shape[2] * clean.shape[3])))
    found = []
    for place in range(shown):
        change = adversarial[place] - clean[place]
        labels = {key: int(run.gallery[key][place]) for key in ("index", "label", "predicted", "adversarial_class", "stage")}
        found.append(
            Picture(
                _uri(clean[place]),
                _uri(adversarial[place]),
                _uri(0.5 + GAIN * change),
                labels["index"],
                run.class_name(labels["label"]),
                run.class_name(labels["predicted"]),
                run.class_name(labels["adversarial_class"]),
                run.stage_name(labels["stage"]),
                float(np.abs(change).max(initial=0)),
            )
        )
    return found


def _uri(image: NDArray[np.float32]) -> str:
    """An image (C,H,W) as a PNG data URI; other than 3 channels are shown by their mean."""
    step = -(-max(image.shape[1:]) // _SIDE)
    image = image[:, ::step, ::step]
    colour = image if len(image) == 3 else np.repeat(image.mean(0, keepdims=True), 3, 0)
    levels = np.rint(np.clip(np.nan_to_num(colour), 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    imsave(buffer, levels, format="png", metadata={"Software": "robustkit"})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

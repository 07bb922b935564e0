"""`train`: from a recipe and data to a safetensors file that says what made it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

import robustkit
from robustkit.classifier import Classifier, pick_device
from robustkit.data import Data, load_data
from robustkit.defenses.checkpoint import Checkpoint, refuse_other
from robustkit.defenses.loop import Loop, batches
from robustkit.defenses.provenance import command, ranges, task_of
from robustkit.defenses.recipe import Recipe, load_recipe
from robustkit.errors import BadInput
from robustkit.models import architecture_text, build, load_model, save_model
from robustkit.models.weights import read_checkpoint
from robustkit.spec import Spec


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    path: Path
    """The safetensors file."""
    metadata: dict[str, str]
    """What the file says of itself: architecture, recipe, data, indices seen, seed, command, loss, ..."""
    resumed: int
    """Steps that were already done when this call began; all of them when the file was there before."""
    steps: int
    """Steps of the whole training."""

    @property
    def loss(self) -> float:
        """Mean loss over the last epoch."""
        return float(self.metadata["train_loss"])

    def __str__(self) -> str:
        return str(self.path)

    def classifier(self, device: str = "auto") -> Classifier:
        """The trained model."""
        return load_model(str(self.path), device=device)


def train(
    recipe: str | Spec | Recipe,
    data: str | Data,
    *,
    arch: str | None = None,
    out: str | Path,
    seed: int = 0,
    device: str = "auto",
    root: str | Path | None = None,
    progress: bool | None = None,
    save_every: float = 10.0,
) -> Trained:
    """Train a model and write it, with everything that made it, to a safetensors file.

    Args:
        recipe: a specification such as `pgd:eps=0.3,epochs=4`.
        data: a specification such as `mnist:n=5000` (the training split unless it says split=), or Data.
        arch: a name such as `wong-small` or a text of the architecture grammar; by default
            `wong-small` for images of at least 28 pixels, `digits-cnn` for smaller ones.
        out: the file to write. Its checkpoint lies beside it until the training is finished.
        seed: of the initialisation, the order and every random draw.
        device: auto, cpu, cuda or cuda:N.
        root: folder of the data sets.
        progress: whether to draw a bar on stderr; None draws one when stderr is a terminal.
        save_every: seconds between checkpoints.

    The same call goes on from the checkpoint, or returns at once when the file is finished.
    Raises BadInput (bad specification, a file of another training in the way, a loss that is not
    finite), Missing (data, device), Unsaved (disk full).
    """
    recipe = load_recipe(recipe)
    target = pick_device(device)
    path = _writable(out)
    images = load_data(data, root=root, split="train")
    if not len(images):
        raise BadInput(f"the data {images.spec} is empty: training needs at least one image")
    asked = architecture_text(arch or default_architecture(images.shape), images.shape, images.classes)
    architecture = recipe.architecture(asked, images.shape)
    task = task_of(recipe, images, architecture, seed)
    steps = recipe.epochs * batches(len(images), recipe.batch)
    checkpoint = Checkpoint(path.with_name(path.name + ".checkpoint"), task)
    if path.exists():
        metadata = read_checkpoint(path).metadata
        refuse_other(path, metadata, task, "delete it to train again")
        checkpoint.remove()
        return Trained(path, metadata, steps, steps)

    network = build(architecture, seed)
    recipe.initialise(network, seed)
    network = network.to(target)
    loop = Loop(recipe, images, network, seed, checkpoint, save_every)
    resumed = loop.run(steps, progress)
    recipe.finish(network, images, seed, progress)
    extra = task | {
        "data_origin": images.origin,
        "trained_indices": ranges(images.index),
        "train_loss": f"{loop.mean_loss():.6g}",
        "command": command(recipe, images, arch, seed, path),
        "robustkit": robustkit.__version__,
        "environment": f"torch {torch.__version__}, {target.type}, {torch.get_num_threads()} threads",
    }
    save_model(network, path, architecture=architecture, input_shape=images.shape, classes=images.classes, extra=extra)
    checkpoint.remove()
    return Trained(path, read_checkpoint(path).metadata, resumed, steps)


def default_architecture(shape: tuple[int, ...]) -> str:
    """What is trained when nobody says."""
    return "wong-small" if min(shape[1:]) >= 28 else "digits-cnn"


def _writable(out: str | Path) -> Path:
    path = Path(out)
    if path.suffix != ".safetensors":
        raise BadInput(f"--out {out}: expected a file that ends in .safetensors, for example model.safetensors")
    if path.is_dir():
        raise BadInput(f"--out {out} is a folder: expected a file, for example {path / 'model.safetensors'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise BadInput(f"--out {out}: its folder cannot be made ({problem.strerror}): choose another place") from problem
    return path

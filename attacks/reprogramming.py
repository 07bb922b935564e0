"""Adversarial reprogramming, Elsayed et al. 2019, https://arxiv.org/abs/1806.11146: a study, never evidence.

One frame around the images of another task makes a frozen victim do that task: the image lies in the
middle of the victim's canvas, every value around it is (1 + tanh W) / 2, the same for all images, and
the victim's first K classes stand for the task's. W is trained with Adam on the task's training split,
minimising cross-entropy + penalty x |W|^2; the learning rate falls by `decay` every two epochs.

The control trains the same program for the same architecture with random weights: what a program
gets out of it is not the victim's doing. (Small networks with a large frame can do well there.)

Deliberate deviations: the paper's [-1,1] inputs become [0,1], so that an untrained program is grey;
`scale` repeats the pixels of small images; the default penalty is smaller, as the paper's 0.05 is meant
for a canvas with 400 times as many values as MNIST's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustkit import streams
from robustkit.classifier import Classifier
from robustkit.data import Data
from robustkit.errors import BadInput
from robustkit.models.architecture import seeded
from robustkit.numerics import exact_mode

ROWS = 256


@dataclass(frozen=True)
class Reprogramming:
    """How a program is trained.

    Fields: epochs; batch, images a step; lr of Adam; decay of lr every two epochs; penalty on the
    sum of squares of W; scale, how often the task's pixels are repeated; labels, the victim's class
    for each class of the task (default 0, 1, 2, ...).
    """

    epochs: int = 30
    batch: int = 50
    lr: float = 0.05
    decay: float = 0.96
    penalty: float = 0.0001
    scale: int = 1
    labels: tuple[int, ...] = ()

    name = "reprogramming"
    positional = ("epochs",)
    paper = "Elsayed et al. 2019"

    def __post_init__(self) -> None:
        self._require(self.epochs >= 1, "epochs", "a whole number of at least 1")
        self._require(self.batch >= 1, "batch", "a whole number of at least 1")
        self._require(0 < self.lr < 100, "lr", "a learning rate above 0, for example 0.05")
        self._require(0 < self.decay <= 1, "decay", "a factor in (0,1]")
        self._require(0 <= self.penalty < math.inf, "penalty", "a number of at least 0")
        self._require(self.scale >= 1, "scale", "a whole number of at least 1")

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise BadInput(f"reprogramming: {name} = {getattr(self, name)}: expected {expected}")

    def start(self, victim: Classifier, task: Data) -> Program:
        """The untrained program, a grey frame, for a victim whose image shape and classes are known. Raises BadInput."""
        assert victim.input_shape is not None and victim.classes is not None
        canvas = (int(victim.input_shape[0]), int(victim.input_shape[1]), int(victim.input_shape[2]))
        image = (task.shape[1] * self.scale, task.shape[2] * self.scale)
        if image[0] > canvas[1] or image[1] > canvas[2] or image == canvas[1:]:
            larger = f"the task's images are {image[0]}x{image[1]}, the victim's canvas {canvas[1]}x{canvas[2]}"
            raise BadInput(f"{larger}: no room for a program: choose smaller images, a larger victim or a smaller scale")
        if task.shape[0] not in (1, 3, canvas[0]) or canvas[0] not in (1, 3, task.shape[0]):
            raise BadInput(
                f"the task's images have {task.shape[0]} channels, the victim's {canvas[0]}: expected 1 or 3, or the same number"
            )
        labels = self.labels or tuple(range(task.classes))
        if len(labels) != task.classes or len(set(labels)) != len(labels) or not all(0 <= k < victim.classes for k in labels):
            told = f"the task has {task.classes} classes, the victim {victim.classes}"
            raise BadInput(
                f"labels = {list(labels)}: {told}: expected one of the victim's classes 0..{victim.classes - 1} for each, all different"
            )
        return Program(torch.zeros(canvas), image, self.scale, torch.tensor(labels))

    def train(self, victim: Classifier, task: Data, seed: int = 0, tick: Callable[[float], None] | None = None) -> Program:
        """The program that makes a frozen victim do a task, trained on all of `task`.

        `tick` is called after every step with its loss. Nothing about the victim changes.
        """
        if not len(task):
            raise BadInput(f"the task {task.spec} is empty: training a program needs at least one image")
        device, program = victim.device, self.start(victim, task)
        program = program.to(device)
        weight = program.weight.requires_grad_()
        optimizer = torch.optim.Adam([weight], lr=self.lr)
        with exact_mode():
            for epoch in range(self.epochs):
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * self.decay ** (epoch // 2)
                order = torch.argsort(streams.row_keys(seed, "reprogramming/order", task.index, epoch), stable=True)
                for where in order.tensor_split(-(-len(task) // self.batch)):
                    with torch.enable_grad():
                        seen = victim.forward(program.apply(task.images(where).to(device)))[:, program.labels]
                        loss = cross_entropy(seen, task.y[where].to(device)) + self.penalty * (weight * program.mask).square().sum()
                    if not bool(torch.isfinite(loss.detach())):
                        raise BadInput(
                            f"training the program ran away (loss {float(loss.detach())}): lower lr, for example lr={self.lr / 5:.2g}"
                        )
                    optimizer.zero_grad(set_to_none=True)
                    torch.autograd.backward(loss)
                    optimizer.step()
                    victim.backwards += len(where)
                    if tick is not None:
                        tick(float(loss.detach()))
        return Program(weight.detach() * program.mask, program.image, program.scale, program.labels).to("cpu")


@dataclass
class Program:
    """A frame, and where the task's images lie in it."""

    weight: Tensor
    """(C,H,W) W; what lies under the image does not act."""
    image: tuple[int, int]
    """Height and width of the embedded image, already scaled."""
    scale: int
    labels: Tensor
    """(K,) int64 the victim's class for each class of the task."""
    mask: Tensor = field(init=False)
    """(1,H,W) 1 where the program acts, 0 under the image."""

    def __post_init__(self) -> None:
        self.mask = torch.ones(1, *self.weight.shape[1:], device=self.weight.device)
        self.mask[:, self.rows, self.columns] = 0

    @property
    def rows(self) -> slice:
        """Rows of the canvas under the image."""
        top = (self.weight.shape[1] - self.image[0]) // 2
        return slice(top, top + self.image[0])

    @property
    def columns(self) -> slice:
        """Columns of the canvas under the image."""
        left = (self.weight.shape[2] - self.image[1]) // 2
        return slice(left, left + self.image[1])

    @property
    def frame(self) -> Tensor:
        """(C,H,W) what the program shows, in [0,1]; grey under the image."""
        return (1 + torch.tanh(self.weight * self.mask)) / 2

    def apply(self, x: Tensor) -> Tensor:
        """The victim's images (N,C,H,W) for the task's (N,c,h,w), both in [0,1]."""
        channels = self.weight.shape[0]
        if x.shape[1] != channels:
            x = x.mean(1, keepdim=True).expand(-1, channels, -1, -1)
        x = x.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
        below = (self.weight.shape[1] - self.rows.stop, self.weight.shape[2] - self.columns.stop)
        placed = nn.functional.pad(x, (self.columns.start, below[1], self.rows.start, below[0]))
        return self.frame * self.mask + placed

    def predict(self, victim: Classifier, x: Tensor) -> Tensor:
        """(N,) class of the task for its images (N,c,h,w)."""
        program = self.to(victim.device)
        with exact_mode():
            parts = [
                victim.logits(program.apply(part.to(victim.device)))[:, program.labels].argmax(1).cpu() for part in torch.split(x, ROWS)
            ]
        return torch.cat(parts)

    def accuracy(self, victim: Classifier, task: Data) -> float:
        """Share of the task's samples that the reprogrammed victim gets right."""
        return float((self.predict(victim, task.x) == task.y).float().mean())

    def to(self, device: str | torch.device) -> Program:
        """The same program on another device."""
        return Program(self.weight.to(device), self.image, self.scale, self.labels.to(device))


def random_twin(victim: Classifier, seed: int) -> Classifier | None:
    """The victim's architecture with freshly drawn weights; None for what is no nn.Module or has none to draw."""
    if not isinstance(victim.original, nn.Module):
        return None
    twin = copy.deepcopy(victim.original)
    drawn = [part for part in twin.modules() if callable(getattr(part, "reset_parameters", None))]
    owned = {id(p) for part in drawn for p in part.parameters(recurse=False)}
    if not drawn or any(id(p) not in owned for p in twin.parameters()):
        return None
    with seeded(seed):
        for part in drawn:
            part.reset_parameters()  # type: ignore[operator]
    mean, std = (v.flatten().tolist() if victim.normalises else None for v in (victim.mean, victim.std))
    shape = victim.input_shape
    return Classifier(twin, mean=mean, std=std, classes=victim.classes, input_shape=shape, device=victim.device, spec="random weights")

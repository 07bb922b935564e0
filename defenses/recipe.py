"""A training recipe: hyper-parameters as fields, and the loss of a minibatch. The trainer owns the rest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields

from torch import Tensor, nn

from robustkit.data import Data
from robustkit.defenses.schedules import one_cycle
from robustkit.errors import BadInput, unknown
from robustkit.methods import Method
from robustkit.registry import find, table
from robustkit.spec import Spec, build, parse


@dataclass(frozen=True)
class Minibatch:
    """What one step of training sees."""

    x: Tensor
    """(R,C,H,W) float32 images in [0,1], on the device."""
    y: Tensor
    """(R,) int64 labels."""
    index: Tensor
    """(R,) int64 dataset indices."""
    key: Tensor
    """(R,) int64 keys for robustkit.streams, fresh in every epoch."""
    progress: float
    """Share of the training that is done, 0 at the first step and 1 at the last."""


Objective = Callable[[Minibatch], Tensor]
"""A minibatch to the scalar loss that the weights are moved against."""


@dataclass(frozen=True)
class Question:
    """What to ask of a trained model first, in the words of `robustkit evaluate`."""

    model: str
    """What is deployed."""
    threat: str
    certifiers: tuple[str, ...] = ("ibp",)
    images: int = 200
    suite: str = "standard"
    """What to go on with for a figure to report."""


@dataclass(frozen=True)
class Recipe(Method):
    """Base of all recipes: frozen dataclasses whose fields are the hyper-parameters.

    Fields: epochs; batch, images a minibatch; lr, the peak of Adam's learning rate; shift, the most
    pixels by which training images are moved at random, along both axes.
    """

    epochs: int = 4
    batch: int = 128
    lr: float = 0.005
    shift: int = 0

    def __post_init__(self) -> None:
        """Raises BadInput for values that no training can use; subclasses add theirs."""
        self.require(self.epochs >= 1, "epochs", "a whole number of at least 1")
        self.require(self.batch >= 1, "batch", "a whole number of at least 1")
        self.require(0 < self.lr < 100, "lr", "a learning rate above 0, for example 0.005")
        self.require(self.shift >= 0, "shift", "a whole number of pixels, 0 for none")

    def require(self, holds: bool, field: str, expected: str) -> None:
        """Raises BadInput that names the field unless the condition holds."""
        if not holds:
            raise BadInput(f"recipe {self.name}: {field} = {getattr(self, field)}: expected {expected}")

    def rate(self, progress: float) -> float:
        """Learning rate as a share of `lr`; one cycle unless a recipe says otherwise."""
        return one_cycle(progress)

    def architecture(self, text: str, shape: tuple[int, int, int]) -> str:
        """The network to train in place of the one asked for (grammar text, images (C,H,W)): itself unless a defense adds layers."""
        return text

    def initialise(self, network: nn.Module, seed: int) -> None:
        """Change the first weights in place; PyTorch's, drawn from the seed, stay unless a recipe says otherwise."""

    def finish(self, network: nn.Module, data: Data, seed: int, progress: bool | None) -> None:
        """Fit what a recipe fits once the weights stand, in place, with a bar as `train` is asked for; nothing unless it says otherwise."""

    def question(self, file: str) -> Question:
        """The threat that the recipe trains against, for the model that its file makes."""
        return Question(file, "linf:0.1")

    @abstractmethod
    def bind(self, network: nn.Module) -> Objective:
        """The loss for one network, images in [0,1] to logits (R,K); its weights are the trainer's.

        Raises BadInput where the recipe cannot train this network.
        """


def load_recipe(recipe: str | Spec | Recipe) -> Recipe:
    """The recipe a specification such as `pgd:eps=0.3,epochs=4` names; raises BadInput."""
    if isinstance(recipe, Recipe):
        return recipe
    spec = parse(recipe) if isinstance(recipe, str) else recipe
    if spec.name not in table("defense"):
        raise unknown("recipe", spec.name, table("defense"))
    found = find("defense", spec.name)
    if not (isinstance(found, type) and issubclass(found, Recipe)):
        raise BadInput(f"{spec.name} is a defense without a training recipe: train a model with another recipe and wrap it")
    return build(found, spec, "recipe")


def typed(recipe: Recipe) -> Spec:
    """The shortest specification of a recipe: only the fields that differ from their defaults."""
    default = {f.name: f.default for f in fields(recipe)}
    options = {key: value for key, value in recipe.spec.options.items() if getattr(recipe, key) != default[key]}
    return Spec(recipe.name, (), options)

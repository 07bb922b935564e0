"""What an attack and a certifier are, and what they return. The engine knows nothing else of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from robustkit.errors import BadInput
from robustkit.spec import Spec, canonical, digest

if TYPE_CHECKING:
    from robustkit.classifier import Classifier
    from robustkit.data import Data
    from robustkit.threats import Threat
    from robustkit.views import View

State = dict[str, Tensor]
"""An attack's memory: tensors with leading dimension rows; `p` is the parameter it stands at."""

Bound = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (R,C,H,W), y (R,), eps (R,) float64) -> (R,) proven lower bound of z_y - max other z."""


@dataclass
class Rows:
    """The unit of attack work: one row is (sample, attempt). All tensors have leading dimension R."""

    index: Tensor
    """int64 dataset index."""
    attempt: Tensor
    """int64, 0 for the first restart or target."""
    x: Tensor
    """(R,C,H,W) float32 clean image."""
    y: Tensor
    """int64 label."""
    target: Tensor
    """int64 class the row aims at, -1 for none."""
    eps: Tensor
    """float64 budget, rounded down."""
    key: Tensor
    """int64 random key of the row."""
    steps: Tensor
    """int64 steps taken so far."""
    scale: Tensor
    """float32 power of two by which logits are multiplied before a loss is asked for; 1 for most."""

    def __len__(self) -> int:
        return len(self.index)

    def pick(self, where: Tensor) -> Rows:
        """The rows at positions (or a mask) `where`."""
        return Rows(**{f.name: getattr(self, f.name)[where] for f in fields(self)})

    @staticmethod
    def join(parts: list[Rows]) -> Rows:
        """All rows of several groups, in order."""
        if len(parts) == 1:
            return parts[0]
        return Rows(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Rows)})


@dataclass(frozen=True)
class Result:
    """What an attack found, per sample (N)."""

    adversarial: Tensor
    """(N,C,H,W) the witness where there is one, else the clean image (with stop="never" the highest-loss point)."""
    success: Tensor
    """(N,) bool: a verified witness within the budget; False for samples that are wrong without any attack."""
    size: Tensor
    """(N,) float64 size of the witness, +inf without one, 0 for clean errors."""
    queries: Tensor
    """(N,) int64 rows sent through the deployed forward."""
    gradients: Tensor
    """(N,) int64 rows sent backward."""
    parameters: Tensor
    """(N,...) threat parameters of `adversarial`."""


@dataclass(frozen=True)
class Certificate:
    """What a certifier proved, per sample (N)."""

    radius: Tensor
    """(N,) float64 radius of the closed ball proven free of errors, -inf where nothing is proven."""
    guarantee: str
    """real-arithmetic, floating-point, statistical(alpha) or conditional(assumption)."""
    margin: Tensor
    """(N,) proven lower bound of the margin at that radius."""
    dtype: str
    """Arithmetic the bound was computed in."""


class Method(ABC):
    """Shared by attacks and certifiers: frozen dataclasses whose fields are their configuration."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    positional: ClassVar[tuple[str, ...]] = ()
    threats: ClassVar[tuple[str, ...]] = ("*",)
    paper: ClassVar[str] = ""

    @property
    def spec(self) -> Spec:
        """Canonical specification with every field written out."""
        return canonical(self, self.name)

    @property
    def title(self) -> str:
        """What tables call it."""
        return self.name

    @property
    def digest(self) -> str:
        """Identity of the configured method, its version included."""
        return digest(f"{self.spec}@{self.version}")

    def accepts(self, threat: Threat) -> None:
        """Raises BadInput when the method does not work for this threat family."""
        if "*" not in self.threats and threat.name not in self.threats:
            raise BadInput(f"{self.name} does not work for threat {threat.name}: it knows {', '.join(self.threats)}")


class Attack(Method):
    """A search for witnesses, one small step at a time, over rows.

    Subclasses are frozen dataclasses. The Driver owns batching, stopping, counting and random
    streams; a view sees every queried point and keeps the first that is adversarial, so an attack
    only has to move.
    """

    access: ClassVar[Literal["gradient", "score", "decision"]] = "gradient"
    bounded: ClassVar[bool] = True
    """Whether all queried points lie within the budget; minimum-norm attacks also look beyond it."""
    minimum_norm: ClassVar[bool] = False
    """Whether one run with an unlimited budget finds the smallest change it can: no budget needs to be searched."""

    @property
    def draws(self) -> int:
        """Draws of a random model that every answer is averaged over; 0 for what its surface says."""
        return int(getattr(self, "eot", 0))

    @property
    def width(self) -> int:
        """Points that a row sends forward at once (view.many); batches hold that many fewer rows."""
        return 1

    @property
    @abstractmethod
    def iterations(self) -> int:
        """Steps of one attempt."""

    def attempts(self, classes: int) -> int:
        """Restarts times targets."""
        return int(getattr(self, "restarts", 1))

    def cost(self, classes: int) -> float:
        """Forward-equivalents of an attack that finds nothing (an input gradient counts 2)."""
        return self.attempts(classes) * self.iterations * (2.0 if self.access == "gradient" else 1.0)

    def target(self, logits: Tensor, y: Tensor, attempt: Tensor) -> Tensor:
        """(R,) class each row aims at, from the clean logits; -1 for none."""
        return torch.full_like(y, -1)

    def prepare(self, pool: Callable[[], Data], classifier: Classifier, threat: Threat, eps: float, seed: int) -> dict[str, Any]:
        """What all rows share, made once before the first and found in `view.shared`.

        Args:
            pool: gives labelled images of the training split, to learn from or to start at.
            eps: the largest budget of the rows to come.
        """
        return {}

    @abstractmethod
    def init(self, rows: Rows, view: View, threat: Threat) -> State:
        """The state of fresh rows; must hold `p`, and may hold `over` (R,) bool for rows that end early."""

    @abstractmethod
    def step(self, rows: Rows, state: State, view: View, threat: Threat) -> State:
        """One step for every row."""

    def __call__(self, model: Any, x: Tensor, y: Tensor, *, threat: Threat | str, **options: Any) -> Result:
        """Attack images x (N,C,H,W) in [0,1] with labels y (N,).

        Keyword options: seed=0, index=(N,) dataset indices (default 0..N-1), stop="first" or
        "never", batch_size="auto", processes="auto", device="auto", pool=Data or (x, y) for attacks that learn from
        other images (default the images themselves). Raises BadInput.
        """
        from robustkit.attacking import attack_images

        return attack_images(self, model, x, y, threat=threat, **options)


_RANDOM = "smoothed models have certifiers of their own, such as --method smoothing"


class Certifier(Method):
    """A proof that no error lies within a ball."""

    guarantee: ClassVar[str] = "real-arithmetic"
    dtype: ClassVar[str] = ""
    """Arithmetic of the bound, "" for that of the images."""
    cost: ClassVar[float] = 3.0
    """Forward-equivalents a sample, on a small network."""

    def effort(self, classifier: Classifier, shape: tuple[int, ...]) -> float:
        """Forward-equivalents a sample on this network, for images of this shape."""
        return self.cost

    @abstractmethod
    def bind(self, classifier: Classifier, threat: Threat) -> Bound:
        """Prepare for one model and family; raises BadInput for an unsupported operation.

        The bound computes in the dtype of x, so that float64 rechecks use the same code.
        """

    def fits(self, classifier: Classifier, threat: Threat, x: Tensor) -> None:
        """Raises BadInput where it cannot work on this model and family, tried on one image x (1,C,H,W)."""
        if classifier.random:
            raise BadInput(f"{self.name} proves what a deterministic model does, the model {classifier.spec} is random: {_RANDOM}")
        self.bind(classifier, threat)(x, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64))

    def subject(self, classifier: Classifier) -> Classifier:
        """The classifier that its certificates are about: the one given, or that one smoothed."""
        return classifier

    def __call__(self, model: Any, x: Tensor, y: Tensor, *, threat: Threat | str, **options: Any) -> Certificate:
        """Certify images x (N,C,H,W) with labels y (N,) at the threat's budget."""
        from robustkit.evaluation.certify_images import certify_images

        return certify_images(self, model, x, y, threat=threat, **options)


class StatisticalCertifier(Certifier):
    """A certifier that samples, and whose certificates hold with a stated probability: `guarantee` is statistical(alpha)."""

    @abstractmethod
    def sample(self, classifier: Classifier, threat: Threat, seed: int) -> Callable[..., tuple[Tensor, ...]]:
        """Prepare for one model and family; raises BadInput.

        The result maps (dataset indices (R,), x (R,C,H,W), y (R,), budgets (R,) float64 or None, tick)
        to (radius (R,) float64, -inf where nothing is proven; margin (R,); rows sent forward (R,)), and
        where it can tell, the radii (R,L) float64 that the same draws prove but for alpha/2, alpha/4, ...
        With budgets it may end as soon as they are proven or out of reach.
        """

    def bind(self, classifier: Classifier, threat: Threat) -> Bound:
        raise BadInput(f"{self.name} samples: it has no bound to bind")

    def fits(self, classifier: Classifier, threat: Threat, x: Tensor) -> None:
        self.sample(classifier, threat, 0)


def with_fields(method: Any, **changes: Any) -> Any:
    """A copy with other field values."""
    return replace(method, **changes)

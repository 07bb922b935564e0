"""The model as the engine sees it: logits for images in [0,1], normalisation inside, frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.core.modes import hold_eval, layers_in_training, statistics
from robustkit.errors import BadInput, Missing, first_line
from robustkit.fastnorm import FoldedNetwork
from robustkit.memory import out_of_memory
from robustkit.numerics import PAD
from robustkit.quick import quicken, quickens
from robustkit.streams import child, row_keys, seeded, uniform
from robustkit.surface import picked, surface_of

_PICK = 6007
"""Purpose of the numbers that draw a class from scores."""

_ROUNDING = 1e-3
"""By how much of the largest logit rounding may move one."""


def frozen_copy(module: nn.Module) -> nn.Module:
    """The same network in eval mode without weight gradients, sharing its tensors.

    Only the structure is copied: parameters and buffers are the caller's own storage, so later
    training steps are seen, and the caller's module, its mode and its flags are never touched.
    (torch.func.functional_call gives the same guarantee at a cost in every call.)
    """
    memo: dict[int, Any] = {}
    try:
        for part in module.modules():  # plain attributes too: the older weight and spectral norms keep results there
            memo |= {id(value): value.detach() for value in vars(part).values() if isinstance(value, Tensor)}
        for parameter in module.parameters():
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        for buffer in module.buffers():
            memo[id(buffer)] = buffer.detach()
        found = copy.deepcopy(module, memo).eval()
        for part in found.modules():  # an eval() of somebody's own may leave some out
            part.training = False
        return found
    except Exception as problem:
        what = f"the model {type(module).__name__} cannot be copied ({problem})"
        raise BadInput(f"{what}: remove what cannot be deep-copied (open files, hooks on locals)") from problem


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device a user named; `auto` takes CUDA where there is one. Raises Missing."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as problem:
        raise BadInput(f"unknown device {str(device)!r}: expected auto, cpu, cuda or cuda:N") from problem
    if found.type not in ("cpu", "cuda"):
        raise BadInput(f"device {str(device)!r} is not supported: expected auto, cpu, cuda or cuda:N")
    if found.type == "cuda" and (not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count()):
        raise Missing(f"device {device} is not here: torch sees {torch.cuda.device_count()} CUDA device(s); use --device cpu")
    return found


class Classifier:
    """Logits (N,K) for images (N,C,H,W) in [0,1].

    Args:
        model: an nn.Module or any callable from images to logits.
        mean, std: per channel, subtracted and divided inside, so that budgets stay in [0,1] units.
        classes: number of classes K, found by the first forward when not given.
        input_shape: (C,H,W) where known; checked against the data.
        spec, sha256: where the model came from, for the record.
        metadata: what the checkpoint said of itself (training data, recipe, ...).
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Tensor],
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        classes: int | None = None,
        input_shape: tuple[int, ...] | None = None,
        device: str | torch.device = "cpu",
        spec: str = "",
        sha256: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.original = model
        self.device = pick_device(device)
        self.in_training = layers_in_training(model)
        """Layers with a mode that were handed over in training mode; they are asked in eval mode."""
        self.switched: list[str] = []
        """Layers that a forward sets to training mode, found by `check`; they are then held in eval mode."""
        self.one_row = ""
        """Why the model cannot be asked one image alone, found by `check`."""
        self.module = frozen_copy(model) if isinstance(model, nn.Module) else model
        if isinstance(self.module, nn.Module):
            self.module = self.module.to(self.device)
        self.surface = surface_of(self.module)
        self.searcher = self.module
        if isinstance(self.module, nn.Module) and self.device.type == "cpu" and quickens(self.module):
            self.searcher = quicken(frozen_copy(self.module))
        self.mean = self._per_channel("mean", mean, 0.0)
        self.std = self._per_channel("std", std, 1.0)
        if bool((self.std <= 0).any()):
            raise BadInput(f"std is {self.std.flatten().tolist()}: expected numbers above 0, one per channel")
        self.normalises = mean is not None or std is not None
        self.classes, self.input_shape = classes, input_shape
        self.spec, self.sha256, self.metadata = spec, sha256, dict(metadata or {})
        self.logits_dtype = torch.float32
        """Type of the logits as the model itself gives them, known after the first forward."""
        self.forwards = 0
        """Rows sent forward so far."""
        self.backwards = 0
        """Rows sent backward so far."""

    def _per_channel(self, name: str, values: Sequence[float] | None, default: float) -> Tensor:
        try:
            found = torch.tensor([default] if values is None else [float(value) for value in values], device=self.device)
        except (TypeError, ValueError) as problem:
            raise BadInput(f"{name} is {values!r}: expected numbers, one per channel") from problem
        if not len(found) or not bool(torch.isfinite(found).all()):
            raise BadInput(f"{name} is {values!r}: expected finite numbers, one per channel")
        return found.float().view(1, -1, 1, 1)

    @property
    def parameters(self) -> int:
        """Number of weights, 0 for a plain callable."""
        return sum(p.numel() for p in self.module.parameters()) if isinstance(self.module, nn.Module) else 0

    @property
    def was_training(self) -> bool:
        """Whether any layer with a mode was handed over in training mode."""
        return bool(self.in_training)

    @property
    def half(self) -> bool:
        """Whether weights or logits are of half precision: proofs in real arithmetic then say little about the model as deployed."""
        weights = self.module.parameters() if isinstance(self.module, nn.Module) else ()
        return any(t in (torch.float16, torch.bfloat16) for t in (self.logits_dtype, *(w.dtype for w in weights)))

    def normalise(self, x: Tensor) -> Tensor:
        """What the network itself is fed: always a tensor of its own, into which it may write."""
        return (x - self.mean) / self.std if self.normalises else x.clone()

    @property
    def random(self) -> bool:
        """Whether the model declares that every forward draws anew."""
        return self.surface.random != "none"

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits with whatever autograd mode is on; x must be on the device. A random model draws from (N,) keys."""
        return self.through(self.module, x, keys)

    def search(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """As `forward`, faster and perhaps rounded otherwise: for attacks, not for verdicts."""
        return self.through(self.searcher, x, keys)

    def surrogate(self, x: Tensor) -> Tensor:
        """Logits of the differentiable stand-in that the model declares."""
        assert self.surface.surrogate is not None
        return self.surface.surrogate(self.normalise(x))

    def through(self, network: Callable[..., Tensor], x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits of a network, such as a copy of the module, asked as the module itself is."""
        found = self._asked(network, x, keys)
        if torch.is_grad_enabled() or not isinstance(found, Tensor):
            return found
        return found.clone()  # a model may write its next answer where it keeps this one

    def _asked(self, network: Callable[..., Tensor], x: Tensor, keys: Tensor | None) -> Tensor:
        fed = self.normalise(x)
        if self.random and keys is None:
            keys = row_keys(self.forwards, "unkeyed", torch.arange(len(x), device=x.device))
        self.forwards += len(x)
        if not self.random or keys is None:
            return network(fed)
        if getattr(self.module, "takes_keys", False):
            return network(fed, keys)
        with seeded(keys):
            return network(fed)

    def tally(self, x: Tensor, keys: Tensor) -> Tensor:
        """(N,K) float32 share of the draws from (N,) keys in which a random model gives each class.

        Where its answer is the class of the highest mean score, a draw gives a class drawn from its
        softmax scores: shares are about the mean then, and tests of counts hold.
        """
        counts, votes = None, self.surface.votes
        count: Callable[..., Tensor] | None = getattr(self.module, "counts", None)
        if count is not None:
            self.forwards += votes * len(x)
            return count(x.clone(), keys, 0, votes).float() / votes
        with torch.no_grad():
            for draw in range(votes):
                each = child(keys, draw)
                logits = self.forward(x, each).nan_to_num(-torch.inf)
                given = logits.argmax(1) if self.surface.random == "vote" else picked(logits, uniform(child(each, _PICK), (1,))[:, 0])
                given = torch.nn.functional.one_hot(given, logits.shape[1])
                counts = given if counts is None else counts + given
        assert counts is not None
        return counts.float() / votes

    def logits(self, x: Tensor) -> Tensor:
        """Logits (N,K) float32, without gradients."""
        with torch.no_grad():
            found = self.forward(x.to(self.device))
        self.logits_dtype = found.dtype
        return found.float()

    __call__ = logits

    def logits64(self, x: Tensor) -> Tensor:
        """Logits computed in float64 where the model allows it, else in float32."""
        if not isinstance(self.module, nn.Module):
            return self.logits(x).double()
        module = copy.deepcopy(self.module).double()  # made anew: the weights may have been trained further
        with torch.no_grad():
            try:
                normalised = (x.double() - self.mean.double()) / self.std.double() if self.normalises else x.to(torch.float64, copy=True)
                logits: Tensor = module(normalised)
                return logits.double()
            except Exception as problem:
                if out_of_memory(problem):
                    raise
                return self.logits(x).double()

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """One forward that finds shape errors before the work begins; raises BadInput."""
        if self.input_shape and tuple(x.shape[1:]) != tuple(self.input_shape):
            takes = f"the model {self.spec} takes images of shape {tuple(self.input_shape)}"
            raise BadInput(f"{takes}, the data has {tuple(x.shape[1:])}: choose data of the model's size")
        if self.mean.shape[1] not in (1, x.shape[1]):
            raise BadInput(f"mean/std have {self.mean.shape[1]} channels, the images {x.shape[1]}: give one value per channel")
        kept = statistics(self.module) if isinstance(self.module, nn.Module) else []
        try:
            found = self._first(x)
        except Exception as problem:  # whatever a user's forward raises is the user's to read, in one line
            why = first_line(problem)
            what = f"the model {self.spec} fails on images of shape {tuple(x.shape[1:])}: {why}"
            raise BadInput(f"{what}: check channels, size and the forward method") from problem
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(x) or found.shape[1] < 2:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            expected = f"expected logits of shape ({len(x)}, classes), at least 2 classes"
            raise BadInput(f"the model {self.spec} returned {shape} for {len(x)} images: {expected}")
        if self.classes is not None and found.shape[1] != self.classes:
            raise BadInput(f"the model {self.spec} returned {found.shape[1]} logits, expected {self.classes}")
        self.classes = int(found.shape[1])
        if isinstance(self.module, nn.Module) and layers_in_training(self.module):
            self.switched = hold_eval(self.module)
            self.searcher = self.module
            for buffer, before in kept:  # the user's own
                buffer.copy_(before)
        if isinstance(self.searcher, FoldedNetwork) and not self._searches_as_it_answers(x.to(self.device)):
            self.searcher = self.module
        if y is not None and len(y) and (int(y.max()) >= self.classes or int(y.min()) < 0):
            known = f"the model {self.spec} knows classes 0..{self.classes - 1}"
            raise BadInput(f"labels reach {int(y.max())}, {known}: check that data and model belong together")

    def _first(self, x: Tensor) -> Tensor:
        """Logits of the first images that a model is asked; where it takes no single row, of that row many times over."""
        try:
            return self.logits(x)
        except Exception as problem:
            if len(x) != 1 or out_of_memory(problem):
                raise
            many = self.logits(x.expand(PAD, *x.shape[1:]))
            self.one_row = first_line(problem)
            return many[:1] if isinstance(many, Tensor) and len(many) == PAD else many

    def _searches_as_it_answers(self, x: Tensor) -> bool:
        """Whether the network with other layers gives the same numbers, from the same draws where it draws."""
        keys = row_keys(0, "check", torch.arange(len(x), device=x.device))
        with torch.no_grad():
            answered = self.forward(x, keys).float()
            try:
                searched = self.search(x, keys).float()
            except Exception as problem:  # a view that needs another layout, say
                if out_of_memory(problem):
                    raise
                return False
        size = answered.abs().masked_fill(~torch.isfinite(answered), 0.0)
        return torch.allclose(searched, answered, rtol=_ROUNDING, atol=_ROUNDING * float(size.median(1).values.max()), equal_nan=True)

    def __repr__(self) -> str:
        name = self.spec or type(self.original).__name__
        return f"Classifier({name}, classes={self.classes}, parameters={self.parameters}, device={self.device})"


def as_classifier(model: Any, **options: Any) -> Classifier:
    """A Classifier from a Classifier, an nn.Module or a callable; raises BadInput."""
    if isinstance(model, Classifier):
        return model
    if isinstance(model, nn.Module) or callable(model):
        return Classifier(model, **options)
    raise BadInput(f"{type(model).__name__} is no model: expected an nn.Module, a robustkit.Classifier or a callable from images to logits")

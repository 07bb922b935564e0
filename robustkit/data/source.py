"""What every data set is before samples are picked from it, and the picking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustkit.data.dataset import Data
from robustkit.errors import BadInput
from robustkit.spec import Spec, Value, build
from robustkit.streams import row_keys


@dataclass(frozen=True)
class Selection:
    """Which samples of a data set: the options that every DATA specification takes."""

    n: int | None = None
    """How many, all by default."""
    split: str | None = None
    """test, train or all, where the set has them."""
    pick: Literal["first", "random"] = "first"
    """random draws by a hash of (seed, dataset index); a larger n begins with the smaller selection."""
    seed: int = 0
    """Seed of pick=random."""

    positional: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 1:
            raise BadInput(f"n = {self.n}: at least one sample is needed; leave n out for all")


@dataclass(frozen=True)
class Source:
    """One split of a data set, its images not necessarily read yet. L is the number of samples."""

    name: str
    head: Spec
    """What the canonical specification begins with, for example mnist or npz:FILE."""
    origin: str
    split: str | None
    """None for a set without splits."""
    sha256: str
    class_names: tuple[str, ...]
    index: Tensor
    """(L,) int64 stored dataset indices, in the order in which pick=first takes them."""
    y: Tensor
    """(L,) int64."""
    read: Callable[[Tensor | None], Tensor]
    """Stored images (R,C,H,W) at positions (R,) of `index`; all of them, uncopied, for None."""
    scale: float
    note: str = ""

    def select(self, chosen: Selection) -> Data:
        """The samples asked for; raises BadInput where there are not as many."""
        total = len(self.index)
        count = total if chosen.n is None else chosen.n
        if count > total:
            raise BadInput(
                f"{self.head}: n = {count} asks for more than the {total} samples{f' of split {self.split}' if self.split else ''}"
            )
        where: Tensor | None = torch.arange(count) if count < total else None
        if chosen.pick == "random":
            where = torch.argsort(row_keys(chosen.seed, "data/pick", self.index), stable=True)[:count]
        return Data(
            spec=str(Spec(self.head.name, self.head.items, {**self.head.options, **self._options(count, chosen)})),
            name=self.name,
            origin=self.origin,
            sha256=self.sha256,
            class_names=self.class_names,
            index=self.index if where is None else self.index[where],
            y=self.y if where is None else self.y[where],
            values=self.read(where),
            scale=self.scale,
            note=self.note,
        )

    def _options(self, count: int, chosen: Selection) -> dict[str, Value]:
        options: dict[str, Value] = {"n": Fraction(count)}
        if self.split is not None:
            options["split"] = self.split
        options["pick"] = chosen.pick
        if chosen.pick == "random":
            options["seed"] = Fraction(chosen.seed)
        return options


def selection(spec: Spec, kind: str) -> Selection:
    """The options of a DATA specification; raises BadInput for unknown ones."""
    return build(Selection, Spec(spec.name, (), spec.options), kind)


def array_reader(values: Tensor) -> Callable[[Tensor | None], Tensor]:
    """`read` of a Source whose images are all in memory."""
    return lambda where: values if where is None else values[where]


def pick_split(asked: str | None, default: str, known: tuple[str, ...], name: str) -> str:
    """The split to load; raises BadInput that lists those there are."""
    split = default if asked is None else asked
    if split not in known:
        raise BadInput(f"{name} has no split {split!r}: it has {', '.join(known)}")
    return split

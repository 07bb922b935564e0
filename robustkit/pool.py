"""Images an attack may learn from or start at: of the training split, never those it is judged on."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from robustkit.data import Data, load_data
from robustkit.errors import RobustkitError
from robustkit.spec import Spec, parse

POOL = 1000
"""Images in a pool, the first of the split."""


def pool_of(data: Data, root: str | Path | None = None) -> Data:
    """The first POOL images of the training split that belongs to `data`.

    Sets without one (a plain npz file, arrays handed over in Python) give their own first images;
    what an attack that uses a pool finds then depends on which samples are evaluated.
    """
    try:
        spec = parse(data.spec)
        if spec.options.get("split", "train") != "train":
            return load_data(str(Spec(spec.name, spec.items, {"split": "train", "n": Fraction(POOL)})), root)
    except RobustkitError:
        pass
    return data.subset(slice(0, POOL))

"""The arrays of an entry: samples.npz as it is submitted, always the same columns as the same bytes."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.core.untrusted_files import HEADER as HEADER
from robustkit.core.untrusted_files import Archive
from robustkit.core.untrusted_files import Arrays as Arrays
from robustkit.core.untrusted_files import read_checked as read_checked
from robustkit.core.untrusted_files import read_file as read_file
from robustkit.core.untrusted_files import real_folder as real_folder
from robustkit.core.untrusted_files import tensors as tensors
from robustkit.core.untrusted_files import typed as typed
from robustkit.errors import BadInput
from robustkit.report.columns import COLUMNS as COLUMNS

UNCHECKED = ("lower_simultaneous",)
"""Columns that a run may have besides: nothing of a submission bears them out, so they are left out."""


def columns(raw: bytes, count: int, where: str) -> Arrays:
    """The columns of samples.npz, each (count,); raises BadInput for anything else. Nothing is unpickled."""
    archive = Archive(raw, where)
    if sorted(name for name in archive.names if name not in UNCHECKED) != sorted(COLUMNS):
        odd = sorted(set(archive.names) ^ set(COLUMNS))
        raise BadInput(f"{where}: expected the columns {', '.join(COLUMNS)}; missing or unknown: {', '.join(odd)[:200]}")
    found = {name: archive.array(name, kind, count) for name, kind in COLUMNS.items()}
    for name, values in found.items():
        if values.dtype.kind == "f" and bool(np.isnan(values).any()):
            raise BadInput(f"{where}: column {name} holds NaN at position {int(np.isnan(values).argmax())}")
    return found


def columns_bytes(values: Mapping[str, NDArray[Any]]) -> bytes:
    """samples.npz of columns, the same columns always as the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, kind in COLUMNS.items():
            inner = io.BytesIO()
            np.lib.format.write_array(inner, np.ascontiguousarray(values[name], dtype=f"<{kind}" if kind != "b1" else bool), version=(1, 0))
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, inner.getvalue())
    return buffer.getvalue()


def is_hex(text: str, length: int) -> bool:
    """Whether a text is a lower-case hexadecimal digest of that length."""
    return re.fullmatch(rf"[0-9a-f]{{{length}}}", text) is not None

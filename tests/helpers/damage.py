"""Damage to files: what a broken disk, an editor or somebody who means harm makes of a run folder."""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.5, 1e300, -1e300, 1e-320, 10**30, -(10**30), 2**63, "", "x", "0.1", "1/0", "1e999", "-1"),
    *("\x1b[31m", "\u202e", "\ud800", "$\\frac{$", "[bold]x", "<script>", "a" * 30_000, "linf:1e9", "NaN", "\n" * 40, "{{ 7 }}", "%s%n"),
    *([], [[]], {}, {"": 0}, [0] * 10, ["x"], {"a": {"b": {}}}, [None], {"eps": 0.1}),
]

VALUES = [b"\xff" * 8, bytes(8), bytes(6) + b"\xf0\x7f", b"\x01" + bytes(7), b""]
"""NaN, zero, infinity, the smallest numbers; the empty one stands for anything."""
SHAPES = ["(10000000000000,)", "(-1,)", "()", "(2, 2)", "(True,)", "(1e3,)", "((((((1,),),),),),)", "(0,)", "(9" + "9" * 50 + ",)"]
TYPES = ["|O", "<f4", ">f8", "|V8", "<U9", "x"]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of every value inside a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(one for key, item in inner for one in places(item, (*path, key)))]


def edit_json(path: Path, draw: random.Random) -> None:
    """One to three values of a document replaced, removed or doubled."""
    document = json.loads(path.read_text())
    for _ in range(draw.randint(1, 3)):
        at = draw.choice(places(document))
        if not at:
            document = draw.choice(ODD)
            break
        holder = document
        for step in at[:-1]:
            holder = holder[step]
        what = draw.random()
        if what < 0.15:
            del holder[at[-1]]
        elif what < 0.3 and isinstance(holder, list):
            holder.extend([holder[at[-1]]] * draw.choice([1, 50, 3000]))
        elif what < 0.45 and isinstance(holder[at[-1]], (int, float)) and not isinstance(holder[at[-1]], bool):
            holder[at[-1]] *= draw.choice([-1, 0, 0.999, 1.001, 1e-9, 1e9])
        else:
            holder[at[-1]] = draw.choice(ODD)
    path.write_text(json.dumps(document))


def flip(path: Path, draw: random.Random) -> None:
    """A few bits turned, or bytes put in, taken out or cut off."""
    raw = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 1, 3, 20])):
        if not raw:
            break
        at = draw.choice([draw.randrange(len(raw)), draw.randrange(min(len(raw), 300))])
        kind = draw.random()
        if kind < 0.7:
            raw[at] ^= 1 << draw.randrange(8)
        elif kind < 0.8:
            raw[at:at] = os.urandom(draw.choice([1, 8, 500]))
        elif kind < 0.9:
            del raw[at : at + draw.choice([1, 8, 500])]
        else:
            del raw[at:]
    path.write_bytes(raw)


def edit_columns(path: Path, draw: random.Random) -> None:
    """An npz archive with other headers, values, names, or ways to be packed."""
    with zipfile.ZipFile(path) as archive:
        held = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    name = draw.choice(sorted(held))
    raw = held[name]
    kind = draw.random()
    if kind < 0.35:
        at = draw.randrange(128, len(raw)) if len(raw) > 128 else 0
        raw[at : at + 8] = draw.choice(VALUES) or os.urandom(8)
    elif kind < 0.7:
        start, end = raw.find(b"{"), raw.find(b"\n")
        text = raw[start:end].decode("latin-1")
        shaped = text[: text.find("(")] + draw.choice(SHAPES) + text[text.find(")") + 1 :]
        told = shaped if draw.random() < 0.5 else text.replace("<f8", draw.choice(TYPES))
        raw[start:end] = told.encode("latin-1")[: end - start].ljust(end - start)
    elif kind < 0.8:
        held[draw.choice(["x.npy", "../x.npy", "label", name + "y", "lower_simultaneous.npy"])] = held.pop(name)
    elif kind < 0.9:
        held[name] = bytearray(b"\0" * draw.choice([10**6, 30 * 10**6]))
    else:
        held[name] = raw[: draw.randrange(len(raw))]
    how = draw.choice([zipfile.ZIP_DEFLATED] * 4 + [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for one, content in held.items():
            archive.writestr(one, bytes(content))
    path.write_bytes(buffer.getvalue())


def replace(path: Path, draw: random.Random) -> None:
    """Something else in place of a file."""
    path.unlink()
    kind = draw.randrange(8)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to("/dev/zero")
    elif kind == 3:
        path.write_bytes(b"[" * 200_000)
    elif kind == 4:
        path.write_bytes(b'{"a":' * 100_000)
    elif kind == 5:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == 6:
        path.write_bytes(os.urandom(1000))


def damages(path: Path) -> list[Callable[[Path, random.Random], None]]:
    """The ways to damage a file of its kind."""
    special = {".json": [edit_json] * 5, ".npz": [edit_columns] * 3}
    return [*special.get(path.suffix, [flip]), flip, flip, replace]

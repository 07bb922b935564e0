"""JSON from strangers: one canonical text for writer and reader, and a check of its form before use."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any, NoReturn

from robustkit.core.plain_text import printable
from robustkit.errors import BadInput
from robustkit.store import canonical_json

LONGEST = 200
"""Characters of a name or another short text."""


def canonical(value: Any) -> bytes:
    """The bytes of a document: sorted keys, no spaces, ASCII, one line. NaN and infinities are refused."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as problem:
        raise BadInput(f"a document holds a number that is not finite ({problem})") from problem
    return (canonical_json(value) + "\n").encode()


def sha256(raw: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(raw).hexdigest()


def parse(raw: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `raw`; raises BadInput for anything else, however it was built."""
    try:
        found = json.loads(raw.decode("utf-8"), parse_constant=_constant, parse_float=_float)
    except (ValueError, RecursionError) as problem:
        raise BadInput(f"{where} is no JSON document ({type(problem).__name__}: {str(problem)[:80]})") from problem
    if not isinstance(found, dict):
        raise BadInput(f"{where} holds a {type(found).__name__}: expected a JSON object")
    return found


def parse_canonical(raw: bytes, where: str) -> dict[str, Any]:
    """As `parse`, and the bytes must be the very ones that `canonical` writes."""
    found = parse(raw, where)
    if canonical(found) != raw:
        raise BadInput(f"{where} is not in canonical form: it was not written by robustkit")
    return found


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large")
    return value


Form = Any
"""A type, a tuple of types, [form of every item], or {key: form}; keys that end in `?` may be absent."""


def check(value: Any, form: Form, where: str) -> None:
    """Raises BadInput unless a parsed document has the form. Keys beyond those named are allowed."""
    if isinstance(form, Mapping):
        if not isinstance(value, dict):
            raise BadInput(f"{where} is a {type(value).__name__}: expected an object")
        for key, inner in form.items():
            name = key.removesuffix("?")
            if name in value:
                check(value[name], inner, f"{where}.{name}")
            elif name == key:
                raise BadInput(f"{where} lacks {name}")
    elif isinstance(form, list):
        if not isinstance(value, list):
            raise BadInput(f"{where} is a {type(value).__name__}: expected a list")
        for place, one in enumerate(value):
            check(one, form[0], f"{where}[{place}]")
    else:
        kinds = form if isinstance(form, tuple) else (form,)
        if float in kinds:
            kinds = (*kinds, int)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in kinds)
            raise BadInput(f"{where} is a {type(value).__name__}: expected {expected}")


def exactly(value: Mapping[str, Any], form: Mapping[str, Form], where: str) -> None:
    """As `check`, and no key beyond those of the form."""
    extra = sorted(set(value) - {key.removesuffix("?") for key in form})
    if extra:
        raise BadInput(f"{where} has unknown keys: {', '.join(extra)[:200]}")
    check(value, form, where)


def short_text(text: str, what: str, *, empty: bool = False) -> str:
    """A text that people type and read: trimmed and normalised. Raises BadInput."""
    found = unicodedata.normalize("NFC", text).strip()
    if not found and not empty:
        raise BadInput(f"{what} is empty: write for example --name 'My model'")
    if len(found) > LONGEST:
        raise BadInput(f"{what} has {len(found)} characters: at most {LONGEST}")
    if found.replace("\u00a0", " ") != _printed(found):
        bad = next(char for char, shown in zip(found + "?", _printed(found) + "?") if char != shown and char != "\u00a0")
        raise BadInput(f"{what} holds U+{ord(bad):04X}, which is not printed or turns the direction of writing: leave it out")
    return found


def is_short_text(text: str) -> bool:
    """Whether `short_text` would leave a text as it is."""
    try:
        return short_text(text, "text", empty=True) == text
    except BadInput:
        return False


def _printed(text: str) -> str:
    return printable(text).replace("\u00a0", " ")

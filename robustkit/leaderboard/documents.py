"""JSON of a board: one canonical text for writer and reader, and texts that people type."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

from robustkit.core.plain_text import printable
from robustkit.core.untrusted_files import sha256 as sha256
from robustkit.core.untrusted_json import check as check
from robustkit.core.untrusted_json import parse as parse
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


def parse_canonical(raw: bytes, where: str) -> dict[str, Any]:
    """As `parse`, and the bytes must be the very ones that `canonical` writes."""
    found = parse(raw, where)
    if canonical(found) != raw:
        raise BadInput(f"{where} is not in canonical form: it was not written by robustkit")
    return found


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

"""JSON from strangers: finite numbers, few levels, no key twice, no text that cannot be printed; then its published form.

The forms are JSON schemas (draft 2020-12) in the folder `schemas`, one for each kind of document.
"""

from __future__ import annotations

import json
import math
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from robustkit.core.untrusted_files import read_file
from robustkit.errors import BadInput

DEEPEST = 32
"""Levels of lists and objects in one another."""

MOST = 1 << 23
"""Bytes that a document may have."""


def read_json(path: Path, form: str, most: int = MOST) -> dict[str, Any]:
    """The JSON object in a file, of the form of a schema such as `run`; raises BadInput or Missing."""
    found = parse(read_file(path, most), str(path))
    check(found, form, str(path))
    return found


def parse(raw: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `raw`; raises BadInput for anything else, however it was built."""
    found = parse_any(raw, where)
    if not isinstance(found, dict):
        raise BadInput(f"{where} holds a {type(found).__name__}: expected a JSON object")
    return found


def parse_any(raw: bytes, where: str) -> Any:
    """As `parse`, for a document that is a list or a single value as well."""
    try:
        found = json.loads(raw.decode("utf-8"), parse_constant=_constant, parse_float=_float, object_pairs_hook=_object)
        _printable(found)
    except (ValueError, RecursionError, MemoryError) as problem:
        raise BadInput(f"{where} is no JSON document ({type(problem).__name__}: {' '.join(str(problem).split())[:80]})") from problem
    return found


def check(document: Any, form: str, where: str) -> None:
    """Raises BadInput unless a parsed document has the form of a schema; says where and what was expected."""
    version, known = document.get("schema_version") if isinstance(document, dict) else None, _versions(form)
    if known and not (type(version) is int and version in known):
        told = "no schema_version" if version is None else f"schema_version {str(version)[:20]}"
        raise BadInput(f"{where} has {told}, this robustkit reads {' and '.join(map(str, known))}: use the version that wrote it")
    problem = next(_validator(form).iter_errors(document), None)
    if problem is not None:
        at = "".join(f"[{step}]" if isinstance(step, int) else f".{str(step)[:40]}" for step in problem.absolute_path)
        raise BadInput(f"{where}{at}: {_words(problem)}")


@cache
def schema(form: str) -> dict[str, Any]:
    """The published schema of a kind of document: run, summary, board, manifest, ..."""
    text = resources.files("robustkit.core.schemas").joinpath(f"{form}.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@cache
def _validator(form: str) -> Any:
    import jsonschema  # here, because it takes a tenth of a second

    return jsonschema.Draft202012Validator(schema(form))


def _versions(form: str) -> tuple[int, ...]:
    about = schema(form).get("properties", {}).get("schema_version", {})
    return tuple(about.get("enum", ()))


def _words(problem: Any) -> str:
    """One line: what was found and what was expected."""
    kind, wanted, found = problem.validator, problem.validator_value, problem.instance
    shown = json.dumps(found) if isinstance(found, (str, int, float, bool, type(None))) else f"a {type(found).__name__} of {len(found)}"
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    if kind == "required":
        return f"{', '.join(key for key in wanted if key not in found)[:200]} is missing"
    if kind == "additionalProperties":
        known = problem.schema.get("properties", {})
        return f"unknown keys: {', '.join(sorted(str(key) for key in found if key not in known))[:200]}"
    if kind == "type":
        kinds = [_TYPES[one] for one in ([wanted] if isinstance(wanted, str) else wanted)]
        return f"found {shown}, expected {' or '.join(kinds)}"
    if kind in ("maxLength", "maxItems", "maxProperties"):
        return f"found {shown}, which is too long: at most {wanted}"
    named = {"enum": "one of", "pattern": "the form", "minimum": "at least", "maximum": "at most", "minItems": "at least as many as"}
    expected = ", ".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted)
    return f"found {shown}, expected {named.get(kind, kind)} {expected[:200]}"


_TYPES = {
    "object": "an object",
    "array": "a list",
    "string": "a text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "null": "null",
}
"""JSON schema's names in plain words."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large")
    return value


def _printable(value: Any) -> None:
    """Raises ValueError for nesting beyond DEEPEST, and for halves of surrogate pairs, which no stream can print."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, str):
                one.isascii() or one.encode()
            elif isinstance(one, dict):
                inner += one.keys()
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        if not inner:
            return
        level = inner
    raise ValueError(f"nested deeper than {DEEPEST}")

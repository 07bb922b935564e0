"""One grammar for everything a user names: NAME[:item,item].

    item  = value | key=value
    value = bare | "quoted" | number | p/q | (nested spec) | [value,value]

Numbers are kept exact (fractions.Fraction). The canonical text of a specification, with all
defaults filled in, is what digests are taken of.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, TypeVar, Union

from robustkit.errors import BadInput, unknown

Value = Union[str, Fraction, "Spec", tuple["Value", ...]]
T = TypeVar("T")

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?(/(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?)?$")
_LONGEST, _BITS, _DEPTH = 2200, 3400, 32
"""Limits that keep hostile texts cheap: characters and bits of one number, nesting."""
_BARE = re.compile(r'[^,=()\[\]"\s:]+')
_NAME = re.compile(r'[^,=()\[\]"\s:]+')


@dataclass(frozen=True)
class Spec:
    """A parsed specification: a name, positional items, keyword items."""

    name: str
    items: tuple[Value, ...] = ()
    options: Mapping[str, Value] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [_text(v) for v in self.items] + [f"{k}={_text(v)}" for k, v in self.options.items()]
        return self.name + (":" + ",".join(parts) if parts else "")

    def __hash__(self) -> int:
        return hash((self.name, self.items, frozenset(self.options.items())))


def parse(text: str) -> Spec:
    """Read one specification; raises BadInput with the position of what is malformed."""
    reader = _Reader(text.strip(), text)
    spec = reader.spec()
    if reader.rest():
        raise reader.error("unexpected text")
    return spec


def number(text: str) -> Fraction:
    """An exact number from `3`, `0.1`, `1e-3` or `8/255`; raises BadInput."""
    if not _NUMBER.match(text.strip()):
        raise BadInput(f"{text!r} is not a number: write for example 0.1, 1e-3 or 8/255")
    if len(text) > _LONGEST:
        raise BadInput(f"the number {text[:20]}... has {len(text)} characters: at most {_LONGEST} are read")
    top, _, bottom = text.strip().partition("/")
    if bottom and Fraction(bottom) == 0:
        raise BadInput(f"{text!r} divides by zero: write for example 8/255")
    value = Fraction(top) / Fraction(bottom) if bottom else Fraction(top)
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _BITS:
        raise BadInput(f"the number {text[:20]!r} is too large or too small to be meant")
    return value


def digest(text: str, length: int = 16) -> str:
    """Hex sha256 prefix of a canonical text."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def number_text(value: Fraction) -> str:
    """Canonical text of an exact number: a short decimal where one exists, else p/q."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    digits = max(twos, fives)
    if rest != 1 or digits > 12:
        return f"{value.numerator}/{value.denominator}"
    scaled = abs(value.numerator) * 10**digits // value.denominator
    text = str(scaled).rjust(digits + 1, "0")
    return ("-" if value < 0 else "") + text[:-digits] + "." + text[-digits:]


def build(cls: type[T], spec: Spec, kind: str) -> T:
    """Make the dataclass `cls` from a specification.

    Positional items fill the fields named in `cls.positional`, in order. Types come from the
    annotations. Raises BadInput that names the field and what it expects.
    """
    names = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    positional: tuple[str, ...] = getattr(cls, "positional", ())
    if len(spec.items) > len(positional):
        takes = f"takes {', '.join(positional)}" if positional else "takes no positional item"
        raise BadInput(f"{spec}: too many positional items; {kind} {spec.name} {takes}; write key=value, keys: {', '.join(names)}")
    given: dict[str, Value] = dict(zip(positional, spec.items))
    for key, value in spec.options.items():
        if key not in names:
            raise unknown(f"option of {kind} {spec.name}", key, names)
        if key in given:
            raise BadInput(f"{spec}: {key} is given twice")
        given[key] = value
    hints = typing.get_type_hints(cls)
    arguments = {key: convert(value, hints[key], f"{kind} {spec.name}: {key}") for key, value in given.items()}
    required = [n for n, f in names.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    absent = [n for n in required if n not in arguments]
    if absent:
        raise BadInput(f"{spec}: {kind} {spec.name} needs {', '.join(absent)}, for example {spec.name}:{absent[0]}=...")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as problem:
        if isinstance(problem, BadInput):
            raise
        raise BadInput(f"{spec}: {problem}") from problem


def canonical(thing: Any, name: str) -> Spec:
    """The specification of a dataclass instance, all fields written out, in field order."""
    options = {f.name: _value(getattr(thing, f.name)) for f in dataclasses.fields(thing) if f.init}
    return Spec(name, (), {k: v for k, v in options.items() if v is not None})


def convert(value: Value, kind: Any, where: str) -> Any:
    """Turn a parsed value into the annotated type `kind`; raises BadInput that says `where`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        problems = []
        for one in (a for a in args if a is not type(None)):
            try:
                return convert(value, one, where)
            except BadInput as problem:
                problems.append(problem)
        raise problems[0]
    if origin is Literal:
        if str(value) not in map(str, args):
            raise BadInput(f"{where} = {_text(value)}: expected one of {', '.join(map(str, args))}")
        return next(a for a in args if str(a) == str(value))
    if origin is tuple:
        items = value if isinstance(value, tuple) else (value,)
        return tuple(convert(v, args[0], where) for v in items)
    rule = _SCALARS.get(kind)
    if rule is None:
        raise TypeError(f"{where}: no conversion to {kind!r}")
    expected, test, make = rule
    if not test(value):
        raise BadInput(f"{where} = {_text(value)}: expected {expected}")
    try:
        return make(value)
    except OverflowError as problem:
        raise BadInput(f"{where}: {_text(value)[:20]}... is too large: expected {expected}") from problem


_SCALARS: dict[Any, tuple[str, Callable[[Any], bool], Callable[[Any], Any]]] = {
    bool: ("true or false", lambda v: str(v).lower() in ("true", "false"), lambda v: str(v).lower() == "true"),
    int: ("a whole number", lambda v: isinstance(v, Fraction) and v.denominator == 1, int),
    float: ("a number", lambda v: isinstance(v, Fraction), float),
    Fraction: ("a number such as 0.1 or 8/255", lambda v: isinstance(v, Fraction), lambda v: v),
    str: ("a word", lambda v: not isinstance(v, tuple), lambda v: number_text(v) if isinstance(v, Fraction) else str(v)),
    Spec: ("a specification", lambda v: isinstance(v, (Spec, str)), lambda v: v if isinstance(v, Spec) else parse(v)),
}


def _value(value: Any) -> Any:
    if value is None or isinstance(value, (str, Spec, Fraction)):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return Fraction(str(value))
    if isinstance(value, (tuple, list)):
        return tuple(_value(v) for v in value)
    if dataclasses.is_dataclass(value):
        return canonical(value, getattr(value, "name", type(value).__name__.lower()))
    return str(value)


def _text(value: Value) -> str:
    if isinstance(value, Fraction):
        return number_text(value)
    if isinstance(value, Spec):
        return f"({value})"
    if isinstance(value, tuple):
        return "[" + ",".join(map(_text, value)) + "]"
    plain = _BARE.fullmatch(value) and not _NUMBER.match(value)
    return value if plain else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _Reader:
    """A recursive-descent reader over one line of text."""

    def __init__(self, text: str, whole: str) -> None:
        self.text, self.whole, self.at, self.depth = text, whole, 0, 0

    def rest(self) -> str:
        return self.text[self.at :]

    def error(self, problem: str) -> BadInput:
        found = self.rest()[:20] or "the end"
        return BadInput(f"malformed specification {self.whole!r}: {problem} at {found!r}; expected NAME[:value,key=value,...]")

    def take(self, mark: str) -> bool:
        if self.rest().startswith(mark):
            self.at += len(mark)
            return True
        return False

    def expect(self, mark: str) -> None:
        if not self.take(mark):
            raise self.error(f"expected {mark!r}")

    def spec(self) -> Spec:
        match = _NAME.match(self.rest())
        if not match:
            raise self.error("a name is missing")
        self.at += match.end()
        items: list[Value] = []
        options: dict[str, Value] = {}
        if self.take(":"):
            while True:
                key, value = self.item()
                if key is None:
                    if options:
                        raise self.error("a positional item after key=value")
                    items.append(value)
                elif key in options:
                    raise self.error(f"{key} is given twice")
                else:
                    options[key] = value
                if not self.take(","):
                    break
        return Spec(match.group(), tuple(items), options)

    def item(self) -> tuple[str | None, Value]:
        start = self.at
        match = _BARE.match(self.rest())
        if match:
            self.at += match.end()
            if self.take("="):
                return match.group(), self.value()
        self.at = start
        return None, self.value()

    def value(self) -> Value:
        if self.depth >= _DEPTH:
            raise self.error(f"nested deeper than {_DEPTH}")
        self.depth += 1
        try:
            return self._value()
        finally:
            self.depth -= 1

    def _value(self) -> Value:
        if self.take("("):
            spec = self.spec()
            self.expect(")")
            return spec
        if self.take("["):
            values: list[Value] = []
            while not self.take("]"):
                values.append(self.value())
                if not self.take(","):
                    self.expect("]")
                    break
            return tuple(values)
        if self.take('"'):
            return self.quoted()
        match = _BARE.match(self.rest())
        if not match:
            raise self.error("a value is missing")
        self.at += match.end()
        if self.rest().startswith(":"):
            raise self.error('a nested specification needs parentheses, text with ":" needs quotes,')
        text = match.group()
        return number(text) if _NUMBER.match(text) else text

    def quoted(self) -> str:
        out: list[str] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            self.at += 1
            if char == '"':
                return "".join(out)
            if char == "\\" and self.at < len(self.text):
                char = self.text[self.at]
                self.at += 1
            out.append(char)
        raise self.error("a closing quote is missing")

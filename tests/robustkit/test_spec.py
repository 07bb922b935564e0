"""The specification grammar as properties."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustkit.errors import BadInput
from robustkit.spec import Spec, Value, build, canonical, digest, number, number_text, parse

bare = st.text(alphabet=st.characters(exclude_categories=("Cs", "Z", "C"), exclude_characters=',=()[]":'), min_size=1, max_size=8)
surrogates: Any = ("Cs",)
words = st.one_of(bare, st.text(alphabet=st.characters(exclude_categories=surrogates), max_size=8))
exact = st.fractions(max_denominator=10**12) | st.fractions()
scalars: st.SearchStrategy[Value] = st.one_of(words, exact)


def _specs(values: st.SearchStrategy[Value]) -> st.SearchStrategy[Spec]:
    return st.builds(Spec, bare, st.lists(values, max_size=3).map(tuple), st.dictionaries(bare, values, max_size=3))


values: st.SearchStrategy[Value] = st.recursive(
    scalars, lambda inner: st.one_of(_specs(inner), st.lists(inner, max_size=3).map(tuple)), max_leaves=6
)
specs = _specs(values)


@given(specs)
def test_text_reads_back_as_the_same_specification(spec: Spec) -> None:
    again = parse(str(spec))
    assert again == spec
    assert str(again) == str(spec)


@given(specs)
def test_equal_specifications_have_equal_hashes(spec: Spec) -> None:
    turned = Spec(spec.name, spec.items, dict(reversed(list(spec.options.items()))))
    assert turned == spec
    assert hash(turned) == hash(spec)


@given(exact)
def test_numbers_are_exact(value: Fraction) -> None:
    assert number(number_text(value)) == value


@given(st.integers(0, 10**9), st.integers(1, 10**9))
def test_quotients_are_exact(top: int, bottom: int) -> None:
    assert parse(f"linf:{top}/{bottom}").items == (Fraction(top, bottom),)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=9, min_value=-1000, max_value=1000))
def test_decimals_are_exact(value: object) -> None:
    assert number(format(value, "f")) == Fraction(str(value))


def test_a_decimal_is_not_a_binary_float() -> None:
    assert number("0.1") == Fraction(1, 10) != Fraction(0.1)
    assert number("1e-3") == Fraction(1, 1000)
    assert str(parse("linf:0.10")) == str(parse("linf:1/10")) == "linf:0.1"


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    try:
        found = parse(text)
    except BadInput:
        return
    assert parse(str(found)) == found


@given(st.text(alphabet='ab:,=()[]"\\1/.e ', max_size=16))
def test_nearly_right_text_is_read_or_refused_in_words(text: str) -> None:
    try:
        found = parse(text)
    except BadInput:
        return
    assert parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "a:",
        "a:,",
        "a:b,",
        "a:k=",
        "a:=v",
        "a:(b",
        "a:b)",
        "a:[1",
        'a:"b',
        "a:b:c",
        "a b",
        "a:1/0",
        "a:k=1,k=2",
        "a:k=1,2",
        "a:" + "(a:" * 5000,
        "a:" + "[" * 5000,
        "a:" + "9" * 5000,
        "a:1" + "0" * 2000,
    ],
)
def test_malformed_text_is_bad_input(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(text)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "nan", "inf", "1/0", "1//2", "0x10", "1e99999", "one"])
def test_what_is_no_number_is_bad_input(text: str) -> None:
    with pytest.raises(BadInput):
        number(text)


@dataclass(frozen=True)
class _Method:
    steps: int = 10
    size: Fraction = Fraction(1, 10)
    loss: Literal["ce", "dlr"] = "ce"
    scale: float = 1.0
    widths: tuple[int, ...] = (1, 2)
    start: bool = True
    note: str | None = None

    positional: ClassVar[tuple[str, ...]] = ("steps",)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be at least 1")


def test_build_fills_positions_keywords_and_defaults() -> None:
    made = build(_Method, parse("m:7,size=8/255,widths=[3,4],start=false,note=007"), "attack")
    assert made == _Method(7, Fraction(8, 255), "ce", 1.0, (3, 4), False, "7")
    assert build(_Method, parse("m"), "attack") == _Method()


@given(st.integers(1, 99), exact, st.sampled_from(["ce", "dlr"]), st.floats(-1e6, 1e6), st.lists(st.integers(0, 9), max_size=3), words)
def test_canonical_form_builds_the_same_again(
    steps: int, size: Fraction, loss: Literal["ce", "dlr"], scale: float, widths: list[int], note: str
) -> None:
    made = _Method(steps, size, loss, scale, tuple(widths), False, note)
    again = build(_Method, parse(str(canonical(made, "m"))), "attack")
    assert again == made
    assert digest(str(canonical(again, "m"))) == digest(str(canonical(made, "m")))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("m:1,2", "positional"),
        ("m:stpes=1", "steps"),
        ("m:steps=0", "at least 1"),
        ("m:steps=1/2", "whole number"),
        ("m:steps=many", "whole number"),
        ("m:loss=mse", "dlr"),
        ("m:scale=1e999", "too large"),
        ("m:1,steps=2", "twice"),
        ("m:start=perhaps", "true or false"),
        ("m:widths=[a]", "whole number"),
    ],
)
def test_build_names_what_is_wrong(text: str, word: str) -> None:
    with pytest.raises(BadInput, match=word):
        build(_Method, parse(text), "attack")

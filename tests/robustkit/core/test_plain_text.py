"""Text from strangers: nothing that a screen obeys, nothing unseen, nothing that passes for something else."""

from __future__ import annotations

import io
import unicodedata

import pytest
from rich.console import Console

from robustkit.core.plain_text import harmless, harmless_all, printable, skeleton
from robustkit.tables import listing

UNSEEN = [
    "\u200b",
    "\u200d",
    "\u2060",
    "\ufeff",
    "\u00ad",
    "\u202e",
    "\u2066",
    "\u200f",
    "\u3164",
    "\u115f",
    "\ufe0f",
    "\U000e0041",
    "\u2800",
]


@pytest.mark.parametrize("sign", [*UNSEEN, "\x1b", "\x07", "\x9b", "\x00", "\r", "\x7f", "\ud800", "\u2028"])
def test_what_acts_or_is_not_seen_is_escaped(sign: str) -> None:
    shown = harmless(f"a{sign}b")
    assert shown == f"a{sign.encode('ascii', 'backslashreplace').decode() if ord(sign) > 127 else f'{chr(92)}x{ord(sign):02x}'}b"
    assert shown.isprintable() and printable(f"a{sign}b") == shown


@pytest.mark.parametrize(
    "name", ["ResNet-18", "Résumé", "β-VAE", "α-CROWN", "ℓ∞ AT", "Łukasz", "מודל", "хорошо", "モデル", "[red]x[/red]", "<b>", "L²"]
)
def test_what_only_looks_foreign_stays(name: str) -> None:
    assert harmless(name) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize("name", ["RеsNet", "ResΝet", "сос", "𝐀BC", "Ｒesnet", "ResNet\u2010l"[:6] + "т"])
def test_letters_that_pass_for_latin_ones_are_escaped(name: str) -> None:
    assert harmless(name).isascii() and "\\" in harmless(name)
    assert harmless(harmless(name)) == harmless(name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ResNet-1", "RеsΝet‐l"), ("Model 0", "M\u200bodel O"), ("IBP", "lBP"), ("modern", "modem"), ("Ｒesnet", "resnet"),
        ("The one", " the\u00a0ONE "), ("Resnét", "Resnet"), ("VGG", "VᏀᏀ"),
    ],
)  # fmt: skip
def test_names_that_look_alike_have_one_skeleton(one: str, other: str) -> None:
    assert skeleton(one) == skeleton(other)


def test_different_names_stay_different() -> None:
    names = ["PGD", "IBP", "TRADES", "Standard", "CROWN-IBP", "Model A", "Model B", "v2", "v3", "Digits standard", "Digits PGD"]
    assert len({skeleton(name) for name in names}) == len(names)


def test_accents_do_not_pile_up() -> None:
    assert len([sign for sign in harmless("Z" + "\u0351" * 40) if unicodedata.combining(sign)]) <= 3


def test_documents_and_tables() -> None:
    assert harmless_all({"a\x1b": ["b\u202e", 3, None, {"c": "d"}]}) == {"a\\x1b": ["b\\u202e", 3, None, {"c": "d"}]}
    stream = io.StringIO()
    listing("t", [["\x1b[31m[red]x[/red]\u202e", 3]], ["a\x1b", "b"], Console(file=stream, width=80, markup=False))
    assert "\x1b" not in stream.getvalue() and "\u202e" not in stream.getvalue() and "[red]x[/red]" in stream.getvalue()

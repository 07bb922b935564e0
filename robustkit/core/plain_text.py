"""Text from strangers, shown so that it can neither act nor pass for something else.

A name may hold what a terminal obeys (escapes), what turns the direction of writing, what nobody sees
(zero-width signs, fillers), or letters of other scripts that look like Latin ones. All of these are
shown as `\\u202e`. What only looks foreign stays: Résumé, β-VAE, מודל.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
"""Signs without ink that are no control characters by their category."""
_NEVER = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_MARKS = 2
"""Accents that a letter may carry beyond its own; more of them cover other lines."""

_ALIKE = {
    "A": "АΑᎪ", "B": "ВΒᏴ", "C": "СᏟ", "D": "Ꭰꓓ", "E": "ЕΕᎬ", "F": "Ϝꓝ", "G": "ԌᏀ", "H": "НΗᎻ", "I": "ІΙӀ", "J": "ЈᎫ", "K": "КΚᏦ",
    "L": "Ꮮꓡ", "M": "МΜᎷ", "N": "Νꓠ", "O": "ОΟՕ", "P": "РΡᏢ", "Q": "Ԛ", "R": "Ꮢꓣ", "S": "ЅՏᏚ", "T": "ТΤᎢ", "U": "Սꓴ", "V": "ѴᏙ",
    "W": "ԜᎳ", "X": "ХΧꓫ", "Y": "УΥҮ", "Z": "ΖᏃ",
    "a": "аαɑᴀ", "b": "ьвʙ", "c": "сϲᴄ", "d": "ԁᴅ", "e": "еᴇҽ", "f": "ꜰ", "g": "ɡցɢ", "h": "һհʜн", "i": "іιɩɪ", "j": "јϳᴊ", "k": "кκᴋ",
    "l": "ӏʟ", "m": "мᴍ", "n": "ոηɴп", "o": "оοօσᴏ", "p": "рρᴘ", "q": "ԛզ", "r": "гʀ", "s": "ѕꜱ", "t": "тτᴛ", "u": "սυᴜ", "v": "ѵνᴠ",
    "w": "ԝωᴡ", "x": "хχ", "y": "уүγʏ", "z": "ᴢ", "3": "ЗзӠ", "4": "Ꮞ", "6": "б", "-": "‐‑‒–—−", "'": "’‘ʼ′", "/": "⁄∕",
}  # fmt: skip
_LOOKS = {sign: plain for plain, signs in _ALIKE.items() for sign in signs}
_LATIN = dict(zip("øđłħŧıßœæ", "odlhtiboa"))
"""Letters of Latin alphabets: alike only where two names are compared."""
_SAME = dict.fromkeys("i1|!", "l") | {"0": "o", "5": "s"}
"""Signs of ASCII that many fonts draw alike."""
_WORD = re.compile(r"\w+")


def printable(text: str) -> str:
    """The text with everything escaped that is obeyed rather than shown, or not seen at all; other spaces become plain."""
    if text.isascii() and text.isprintable():
        return text
    shown, marks = [], 0
    for sign in unicodedata.normalize("NFC", text.replace("\n", " ").replace("\t", " ")):
        kind = unicodedata.category(sign)
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        if kind == "Zs" and sign != "\u00a0":
            shown.append(" ")
        elif kind in _NEVER or sign in _UNSEEN or _selects(sign) or marks > _MARKS:
            shown.append(_escaped(sign))
        else:
            shown.append(sign)
    return "".join(shown)


def harmless(text: str) -> str:
    """As `printable`, and letters that pass for Latin ones are escaped where they stand among such, or stand for a whole word."""
    if text.isascii() and text.isprintable():
        return text
    return _WORD.sub(lambda word: _unmasked(word.group()), printable(text))


def harmless_all(value: Any) -> Any:
    """A JSON document with every text, keys included, made harmless."""
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, dict):
        return {harmless_all(key): harmless_all(one) for key, one in value.items()}
    return [harmless_all(one) for one in value] if isinstance(value, (list, tuple)) else value


def folded(name: str) -> str:
    """A name as people type it: however it is spaced and capitalised. What only looks alike stays another."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def skeleton(name: str) -> str:
    """The same for two names that a reader would take for one another; shown to nobody."""
    plain = unicodedata.normalize("NFKC", name.translate(_TABLE))
    bare = (sign for sign in unicodedata.normalize("NFD", plain) if sign not in _UNSEEN and not _unshown(sign))
    folded = "".join(_LOOKS.get(sign, sign) for sign in bare).casefold()
    found = "".join(_SAME.get(sign, _LATIN.get(sign, sign)) for sign in folded)
    return " ".join(found.replace("rn", "m").replace("vv", "w").split())


_TABLE = {ord(sign): plain for sign, plain in _LOOKS.items()}


def _unmasked(word: str) -> str:
    """A word with its false Latin letters escaped; a single Greek letter, as in β-VAE, is none."""
    if len(word) == 1 or word.isascii():
        return word
    plain = [_plain(sign) for sign in word]
    false = [one is not None and not sign.isascii() for sign, one in zip(word, plain)]
    whole = all(one is not None for one in plain)
    mixed = any(sign.isascii() and sign.isalpha() for sign in word)
    return "".join(_escaped(sign) if bad else sign for sign, bad in zip(word, false)) if whole or mixed else word


def _plain(sign: str) -> str | None:
    """The ASCII sign that another one passes for (or is), None where it passes for none."""
    if sign.isascii():
        return sign
    if sign in _LOOKS:
        return _LOOKS[sign]
    styled = unicodedata.name(sign, "").startswith(("MATHEMATICAL", "FULLWIDTH"))
    return unicodedata.normalize("NFKC", sign) if styled else None


def _unshown(sign: str) -> bool:
    return unicodedata.category(sign) in (*_NEVER, "Mn", "Me") or _selects(sign)


def _selects(sign: str) -> bool:
    """Whether it only selects how the sign before it is drawn."""
    return "\ufe00" <= sign <= "\ufe0f" or "\U000e0100" <= sign <= "\U000e01ef"


def _escaped(sign: str) -> str:
    return sign.encode("ascii", "backslashreplace").decode() if not sign.isascii() else f"\\x{ord(sign):02x}"

"""Rows for `robustkit list` and `robustkit show`."""

from __future__ import annotations

import dataclasses
from typing import Any

from robustkit import registry
from robustkit.errors import BadInput, unknown

Rows = list[list[str]]


def _methods(kind: str) -> tuple[list[str], Rows]:
    rows = []
    for name, method in registry.every(kind).items():
        access = getattr(method, "access", getattr(method, "guarantee", ""))
        threats = "any" if "*" in method.threats else ", ".join(method.threats)
        rows.append([name, threats, access, method.paper, _about(method)])
    return ["name", "threats", "access" if kind == "attack" else "guarantee", "paper", "about"], rows


def _about(thing: Any) -> str:
    """First sentence of the docstring of a class, else of its module."""
    text = (thing.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(text.split()).split(". ")[0].rstrip(".")


def _recipes() -> tuple[list[str], Rows]:
    return ["name", "about"], [[name, _about(recipe)] for name, recipe in registry.every("defense").items()]


def _models() -> tuple[list[str], Rows]:
    from robustkit.models import zoo_names

    rows = [[f"zoo:{name}", "bundled"] for name in zoo_names()]
    kinds = ["FILE.safetensors", "torchvision:NAME", "package.module:callable", "FILE.pt2 (needs --allow-code)"]
    kinds += ["smooth:(MODEL),sigma=0.25", *(f"{name}:(MODEL)" for name in sorted(registry.table("wrapper")))]
    return ["name", "about"], rows + [[kind, "your own"] for kind in kinds]


def _data() -> tuple[list[str], Rows]:
    from robustkit.data import data_names

    return ["name", "options"], [[name, "n=, split=, pick=first|random"] for name in data_names()]


def _suites() -> tuple[list[str], Rows]:
    from robustkit.suites import SUITES

    rows = []
    for name, families in SUITES.items():
        for threats, suite in families.items():
            rows.append(
                [
                    name,
                    ", ".join(threats),
                    " -> ".join([*suite.certifiers, *suite.attacks[:1], *suite.later, *suite.attacks[1:]]),
                    suite.about,
                ]
            )
    return ["name", "threats", "stages", "about"], rows


def _threats() -> tuple[list[str], Rows]:
    from robustkit.threats import THREATS

    return ["name", "example", "about"], [[name, f"{name}:0.1", _about(threat)] for name, threat in THREATS.items()]


_KINDS = {
    "attacks": lambda: _methods("attack"),
    "certifiers": lambda: _methods("certifier"),
    "defenses": _recipes,
    "recipes": _recipes,
    "models": _models,
    "data": _data,
    "suites": _suites,
    "threats": _threats,
}


def listing_of(what: str) -> tuple[list[str], Rows]:
    """(columns, rows) of one kind; raises BadInput."""
    if what not in _KINDS:
        raise unknown("kind of thing", what, _KINDS)
    return _KINDS[what]()


def describe(what: str, threat: str) -> tuple[str, list[str], Rows]:
    """(title, columns, rows) for `attack:pgd`, `certifier:ibp`, `defense:pgd`, `suite:standard` or `attack:foolbox:ddn`."""
    kind, _, name = what.partition(":")
    if kind == "suite":
        from robustkit.suites import suite
        from robustkit.threats import load_threat

        found = suite(name, load_threat(threat))
        rows = [["certifier", str(registry.make("certifier", text).spec)] for text in found.certifiers]
        rows += [["attack", str(registry.make("attack", text).spec)] for text in found.attacks]
        rows[len(found.certifiers) + 1 : len(found.certifiers) + 1] = [
            ["certifier", str(registry.make("certifier", text).spec)] for text in found.later
        ]
        rows += [["radius search (--curve)", str(registry.make("attack", found.radius).spec)]]
        return f"suite {name} for {threat}: {found.about}", ["kind", "specification"], rows
    if kind not in registry.ROOMS:
        raise BadInput(f"nothing to show for {what!r}: expected a run folder, attack:NAME, certifier:NAME, defense:NAME or suite:NAME")
    name, _, one = name.partition(":")
    method = registry.find(kind, name)
    if hasattr(method, "listing"):
        listed: tuple[str, list[str], Rows] = method.listing(one)
        return listed
    rows = [[f.name, _type(f), _default(f)] for f in dataclasses.fields(method) if f.init]
    return f"{kind} {name}: {' '.join((method.__doc__ or '').split())}", ["option", "type", "default"], rows


def _type(field: Any) -> str:
    return str(field.type).replace("Fraction", "number")


def _default(field: Any) -> str:
    if field.default is not dataclasses.MISSING:
        return str(field.default)
    return "required" if field.default_factory is dataclasses.MISSING else str(field.default_factory())

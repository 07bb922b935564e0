"""Attacks of the Foolbox library, Rauber et al. 2020, https://doi.org/10.21105/joss.02607, as stages.

`foolbox:NAME,option=value,...`: the names stand in `TABLE`, the options are those of the Foolbox
attack's constructor. The class is chosen by the threat's norm. Foolbox runs its own loop (blocks.py);
what it returns is only a suggestion, every point it asks about counts, and the Judge decides.

Deliberate deviations: random numbers come from robustkit's streams, so that a sample draws the same
ones in every batch; attacks of fixed size stay a rounding error inside the budget; the l2 form of
`fmn` projects onto its ball, made wider by a hundredth (Foolbox 3.3.4 divides a norm by itself there,
and never projects; exactly projected it often ends just short of the boundary of a ReLU network);
`hopskipjump` asks for all points of a gradient estimate at once, not one after another.
Left out: DatasetAttack and BinarizationRefinementAttack need other adversarial images, SpatialAttack
is no norm (see the rotation threat).
"""

from __future__ import annotations

import importlib.util
import inspect
import typing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Union

import torch
from torch import Tensor

from robustkit.attacks.foolbox_library import criterion, drawing, foolbox_class
from robustkit.attacks.foolbox_table import ANY, FOOLBOX, TABLE, Entry
from robustkit.blocks import BlockAttack
from robustkit.errors import BadInput, Missing, unknown
from robustkit.methods import Rows
from robustkit.spec import Spec, Value, convert, parse
from robustkit.threats import Threat
from robustkit.watch import Watch

_GIVEN = ("self", "distance", "tensorboard", "channel_axis", "constraint")
"""Constructor parameters that are no options: they follow from the threat and the data."""


@dataclass(frozen=True, init=False)
class FoolboxAttack(BlockAttack):
    """Runs one of the Foolbox library's attacks, for example foolbox:ddn; all names: robustkit show attack:foolbox.

    Fields: attack, its name; options of the Foolbox attack, written behind the name as key=value
    (robustkit show attack:foolbox:NAME). In Python FoolboxAttack("ddn", steps=100).
    """

    attack: str
    options: tuple[tuple[str, Value], ...] = ()

    name = "foolbox"
    positional = ("attack",)
    access = "by name"  # type: ignore[assignment]
    threats = ANY
    paper = FOOLBOX

    def __init__(self, attack: str, /, **options: Any) -> None:
        """Raises BadInput for an unknown name, option or value, Missing where Foolbox lacks a library."""
        entry = _entry(attack)
        given = {key: _value(value) for key, value in options.items()}
        values = {"attack": attack, "options": tuple(sorted(given.items()))}
        shown = {"access": entry.access, "threats": tuple(entry.classes), "paper": entry.paper, "minimum_norm": entry.minimum}
        apart = entry.together if isinstance(entry.together, bool) else _text(given.get(entry.together, "")) == "false"
        if entry.together == "init_attack":
            apart = "init_attack" not in given
        for key, value in {**values, **shown, "together": apart, "targetable": entry.aims != "label"}.items():
            object.__setattr__(self, key, value)
        if entry.needs and importlib.util.find_spec(entry.needs) is None:
            raise Missing(f"foolbox:{attack} needs {entry.needs}, which is not installed: pip install {entry.needs}")
        for family in entry.classes:
            if entry.needs:
                self.arguments(family)  # made only when it runs: that compiles
            else:
                self.make(family)

    @classmethod
    def from_spec(cls, spec: Spec) -> FoolboxAttack:
        """The attack that a specification such as `foolbox:boundary,steps=200` names; raises BadInput."""
        if len(spec.items) != 1 or not isinstance(spec.items[0], str):
            raise BadInput(f"{spec}: expected foolbox:NAME,key=value,... with the name of one attack; see: robustkit show attack:foolbox")
        return cls(spec.items[0], **spec.options)

    @property
    def spec(self) -> Spec:
        return Spec(self.name, (self.attack,), dict(self.options))

    @property
    def title(self) -> str:
        return f"{self.name}:{self.attack}"

    @property
    def iterations(self) -> int:
        """Steps of the loops, as far as the options tell."""
        kind = foolbox_class(TABLE[self.attack].classes[self.threats[0]])
        made = {key: one.default for key, one in inspect.signature(kind.__init__).parameters.items()} | self.arguments(self.threats[0])
        return int(made.get("steps", made.get("repeats", 1))) * int(made.get("binary_search_steps", 1))

    def target(self, logits: Tensor, y: Tensor, attempt: Tensor) -> Tensor:
        if TABLE[self.attack].aims != "class":
            return torch.full_like(y, -1)
        return logits.scatter(1, y[:, None], -torch.inf).argmax(1)

    def accepts(self, threat: Threat) -> None:
        if threat.name not in self.threats:
            raise BadInput(f"foolbox:{self.attack} does not work for threat {threat.name}: it knows {', '.join(self.threats)}")

    def arguments(self, family: str) -> dict[str, Any]:
        """What the constructor of the Foolbox attack for a threat family is called with; raises BadInput."""
        kind = foolbox_class(TABLE[self.attack].classes[family])
        known = _parameters(kind)
        given = dict(TABLE[self.attack].defaults) | dict(self.options)
        arguments: dict[str, Any] = {}
        for key, value in given.items():
            if key not in known:
                raise unknown(f"option of foolbox:{self.attack}", key, known)
            arguments[key] = _converted(value, known[key], f"foolbox:{self.attack}: {key}", family)
        accepted = inspect.signature(kind.__init__).parameters
        if "distance" in accepted:
            import foolbox.distances

            arguments["distance"] = getattr(foolbox.distances, family)
        if "constraint" in accepted:
            arguments["constraint"] = family
        return arguments

    def make(self, family: str) -> Any:
        """The Foolbox attack for a threat family; raises BadInput."""
        try:
            return foolbox_class(TABLE[self.attack].classes[family])(**self.arguments(family))
        except (TypeError, ValueError) as problem:
            raise BadInput(f"{self.spec}: {problem}") from problem

    def search(self, rows: Rows, watch: Watch, threat: Threat) -> Tensor:
        import foolbox

        attack = self.make(threat.name)
        tensor = drawing(rows.key)

        class Model(foolbox.models.base.Model):
            bounds = foolbox.types.Bounds(0, 1)
            data_format = "channels_first"

            def __call__(self, inputs: Any) -> Any:
                return tensor(watch(inputs.raw))

        aimed = bool((rows.target >= 0).all())
        goal = criterion(aimed)(tensor(rows.target if aimed else rows.y))
        size = {"early_stop": None} if self.minimum_norm else {"epsilon": max(0.0, float(rows.eps[0]) * (1 - 1e-6) - 1e-7)}
        found: Tensor = attack.run(Model(), tensor(rows.x), goal, **size).raw
        return found

    @classmethod
    def listing(cls, attack: str) -> tuple[str, list[str], list[list[str]]]:
        """(title, columns, rows): all attacks, or with a name the options of one; raises BadInput."""
        if not attack:
            found = [[n, ", ".join(e.classes), e.access, "minimum" if e.minimum else "fixed", e.paper] for n, e in TABLE.items()]
            title = "attack foolbox: foolbox:NAME,option=value; the options of one: robustkit show attack:foolbox:NAME"
            return title, ["name", "threats", "access", "size", "paper"], sorted(found)
        entry = _entry(attack)
        size = "the smallest change" if entry.minimum else "a change of the budget's size"
        title = f"attack foolbox:{attack} ({entry.paper}): looks for {size}, sees {entry.access}s, threats {', '.join(entry.classes)}"
        options: dict[str, list[str]] = {}
        for kind in map(foolbox_class, entry.classes.values()):
            for key, parameter in inspect.signature(kind.__init__).parameters.items():
                if key in _parameters(kind):
                    default = entry.defaults.get(key, "required" if parameter.default is parameter.empty else parameter.default)
                    options.setdefault(key, [key, _shown(_parameters(kind)[key]), str(default)])
        return title, ["option", "type", "default"], list(options.values())


def _entry(attack: str) -> Entry:
    if attack not in TABLE:
        raise unknown("Foolbox attack", attack, TABLE)
    return TABLE[attack]


def _parameters(kind: Any) -> dict[str, Any]:
    """option -> annotated type of a Foolbox attack's constructor."""
    if kind.__init__ is object.__init__:
        return {}
    hints = typing.get_type_hints(kind.__init__)
    return {key: hints[key] for key in inspect.signature(kind.__init__).parameters if key not in _GIVEN and key in hints}


def _plain(kind: Any) -> tuple[Any, ...]:
    """The types of a union but for None; several literals as one."""
    parts = tuple(a for a in typing.get_args(kind) if a is not type(None)) if typing.get_origin(kind) is Union else (kind,)
    if len(parts) > 1 and all(typing.get_origin(part) is Literal for part in parts):
        return (Literal[tuple(word for part in parts for word in typing.get_args(part))],)
    return parts


def _shown(kind: Any) -> str:
    parts = _plain(kind)
    if any(getattr(part, "__name__", "") == "MinimizationAttack" for part in parts):
        return "Foolbox attack"
    names = [str(part if typing.get_args(part) else getattr(part, "__name__", part)) for part in parts]
    return " or ".join(names).replace("typing.", "")


def _converted(value: Value, kind: Any, where: str, family: str) -> Any:
    """An option's value as its annotation wants it; raises BadInput."""
    parts = _plain(kind)
    if any(getattr(part, "__name__", "") == "MinimizationAttack" for part in parts):
        spec = value if isinstance(value, Spec) else parse(_text(value))
        other = FoolboxAttack.from_spec(Spec("foolbox", (spec.name, *spec.items), spec.options))
        if not other.minimum_norm:
            raise BadInput(f"{where} = {spec}: expected an attack that looks for the smallest change, for example blended-noise")
        return other.make(family if family in other.threats else other.threats[0])
    found = convert(value, parts[0], where)
    if isinstance(found, int) and not isinstance(found, bool) and found < 1:
        raise BadInput(f"{where} = {found}: expected a whole number of at least 1")
    return found


def _value(value: Any) -> Value:
    """An option as the grammar has it, from a Python value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return Fraction(str(value))
    if isinstance(value, (list, tuple)):
        return tuple(_value(v) for v in value)
    return value if isinstance(value, (Fraction, Spec)) else str(value)


def _text(value: Value) -> str:
    return value.lower() if isinstance(value, str) else str(value)

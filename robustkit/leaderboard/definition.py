"""What a board is about: data, threat, budget, suite floor, seed. Written once; any change is a new version."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from robustkit import registry
from robustkit.data import Data, load_data
from robustkit.errors import BadInput, Missing
from robustkit.evaluation.untrusted_names import code_in, open_data
from robustkit.leaderboard.documents import canonical, check, parse_canonical, sha256
from robustkit.leaderboard.files import read_file
from robustkit.methods import Attack
from robustkit.plan import make_plan
from robustkit.spec import number_text, parse
from robustkit.suites import suite as find_suite
from robustkit.threats import Threat, load_threat

SCHEMA = 1
FILE = "board.json"
METRICS = ("clean_accuracy", "robust_accuracy", "certified_accuracy", "open", "interval95", "population95", "curve")
"""What every submission's summary must hold."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Definition:
    """The question that all entries of a board answer."""

    name: str
    version: int
    data: dict[str, Any]
    """spec, digest, sha256, origin, n, shape, classes."""
    threat: str
    """Canonical, with its exact budget."""
    eps: str
    suite: str
    floor: list[dict[str, Any]]
    """Attacks that every submission must have run: method (canonical), version."""
    seed: int = 0
    goal: str = "untargeted"
    labels: str = "given"
    metrics: list[str] = field(default_factory=lambda: list(METRICS))
    folder: Path | None = field(default=None, compare=False)
    """Where the definition was read; a file that it names has to lie there. No part of the question."""
    given: str | None = field(default=None, compare=False)
    """The data as the user names it, where the definition names what is not opened by itself. No part of the question."""

    @property
    def title(self) -> str:
        """name@version."""
        return f"{self.name}@{self.version}"

    @property
    def raw(self) -> bytes:
        """The bytes of board.json."""
        return canonical({"schema_version": SCHEMA, **self._question()})

    @property
    def digest(self) -> str:
        return sha256(self.raw)

    @property
    def n(self) -> int:
        return int(self.data["n"])

    def same_question(self, other: Definition) -> bool:
        """Whether only the version differs."""
        return self._question() | {"version": 0} == other._question() | {"version": 0}

    def _question(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self) if one.compare}

    @property
    def most_witnesses(self) -> int:
        """Bytes that a file with a witness for every sample may have."""
        values = int(math.prod(self.data["shape"]))
        return (1 << 20) + self.n * (64 + 16 * values)

    def load_threat(self) -> Threat:
        return load_threat(self.threat)

    def load_data(self, root: str | Path | None, allow_code: bool = False) -> Data:
        """The board's samples, the very ones; raises BadInput where they have changed, Missing where they are not here.

        What the definition names is opened as `evaluation.untrusted_names` says; `given` is what the user names instead.
        """
        spec = str(self.data["spec"])
        if self.given is not None:
            found = load_data(self.given, root)
        else:
            found = open_data(spec, self.folder, root, allow_code=allow_code)
        if found.digest != self.data["digest"]:
            raise BadInput(
                f"the data {spec} here is not the board's (digest {found.digest[:12]}..., the board has {self.data['digest'][:12]}...)"
            )
        return found

    def attacks(self, classes: int) -> list[tuple[Attack, int]]:
        """The attacks of the floor that make sense for a number of classes, each with its least version."""
        found = []
        for one in self.floor:
            code = code_in(parse(str(one["method"])))
            if code:
                raise BadInput(
                    f"the board demands the attack {str(one['method'])[:80]}, which opens {code[:40]!a}: no board may ask for that"
                )
            attack = registry.make("attack", str(one["method"]))
            assert isinstance(attack, Attack)
            try:
                attack.attempts(classes)
            except BadInput:
                continue
            found.append((attack, int(one["version"])))
        return found


def define(
    name: str,
    version: int,
    data: str,
    threat: str,
    *,
    suite: str = "standard",
    seed: int = 0,
    goal: str = "untargeted",
    labels: str = "given",
    root: str | Path | None = None,
) -> Definition:
    """Resolve what a user asks for into a definition; raises BadInput or Missing."""
    if not _NAME.fullmatch(name):
        raise BadInput(f"board name {name!r}: expected letters, digits, dots and dashes, for example mnist-linf-0.3")
    from robustkit.verdict.goals import Goal

    Goal(goal)
    if labels not in ("given", "predicted"):
        raise BadInput(f"labels {labels!r}: expected given or predicted")
    found, about = load_data(data, root), load_threat(threat)
    find_suite(suite, about)
    stages = make_plan(about, [about.eps], suite=suite, attacks=None, certifiers=None, curve=False, seed=seed)
    floor = [{"method": str(s.method.spec), "version": s.method.version} for s in stages if s.kind == "attack" and s.mode == "settle"]
    told = {"spec": found.spec, "digest": found.digest, "sha256": found.sha256, "origin": found.origin, "n": len(found)}
    told |= {"shape": list(found.shape), "classes": found.classes}
    return Definition(name, version, told, str(about.spec), number_text(about.eps), suite, floor, seed, goal, labels)


def read_definition(folder: Path) -> Definition:
    """The definition of a board folder; raises Missing where there is none, BadInput where it is damaged."""
    path = folder / FILE
    if not path.exists():
        raise Missing(f"{folder} is no leaderboard: there is no {FILE}; make one with robustkit leaderboard init {folder}")
    found = parse_canonical(read_file(path, 1 << 20), str(path))
    check(found, "board", str(path))
    del found["schema_version"]
    return Definition(**found, folder=folder)


def parse_title(text: str) -> tuple[str, int | None]:
    """`mnist-linf-0.3@1` as (name, version); the version is None where it is not said. Raises BadInput."""
    name, at, version = text.partition("@")
    if at and not (version.isdecimal() and 0 < int(version) < 10**6):
        raise BadInput(f"board {text!r}: expected name@version, for example mnist-linf-0.3@1")
    return name, int(version) if at else None

"""An entry's certificates computed once more by the verifier, as far as they are affordable; what is not stays unproven."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from robustkit import registry
from robustkit.core.comparisons import float_below
from robustkit.errors import BadInput, RobustkitError
from robustkit.evaluation.check_certificates import proven_again
from robustkit.evaluation.untrusted_names import code_in
from robustkit.guarantees import CLASSES, alpha_of, guarantee_class
from robustkit.leaderboard.limits import Limits, TooMuch, pace
from robustkit.leaderboard.manifest import Entry
from robustkit.leaderboard.subject import Subject
from robustkit.methods import Certifier
from robustkit.spec import number, parse
from robustkit.verdict.evidence import Bools, Ints

MOST = 3
"""Different certifiers of a weaker class that are tried: each is one more chance to err."""
ALPHA = 0.01
"""Statistical certificates may err with at most this probability to be shown."""


@dataclass
class Recomputed:
    """What came again."""

    held: dict[str, Bools]
    """Class of guarantee -> (N,) samples proven at the board's budget, by the verifier."""
    count: int = 0
    """Certificates that were claimed for the samples drawn."""
    problems: list[str] = field(default_factory=list)
    """Deterministic certificates that do not hold."""
    left_out: list[str] = field(default_factory=list)
    """What was not computed here, and why."""


class Recompute:
    """The certificates of one entry at positions `at`."""

    def __init__(self, entry: Entry, subject: Subject, at: Ints, seed: int, limits: Limits) -> None:
        self.entry, self.subject, self.at, self.seed, self.limits = entry, subject, at, seed, limits
        self.columns, self.stages = entry.columns, entry.summary["stages"]
        self.budget = float_below(number(entry.definition.eps))
        self.started = time.monotonic()
        self.found = Recomputed({kind: np.zeros(len(self.columns["index"]), dtype=bool) for kind in CLASSES})

    def run(self) -> Recomputed:
        """All classes of guarantee; raises nothing that a submission can cause."""
        self._deterministic()
        for kind in ("statistical", "conditional"):
            self._weaker(kind)
        return self.found

    def _deterministic(self) -> None:
        """Each at the very radius that is claimed: one that is not proven is a disagreement."""
        own = self.columns
        claimed = self.at[(own["lower"][self.at] > 0) & (own["upper"][self.at] > 0)]
        self.found.count += len(claimed)
        for stage in np.unique(own["lower_stage"][claimed]).tolist():
            mine = claimed[own["lower_stage"][claimed] == stage]
            spec = str(self.stages[stage]["spec"]) if 0 <= stage < len(self.stages) else ""
            try:
                proven = self._proven(self._certifier(spec, len(mine)), mine, own["lower"][mine])
            except RobustkitError as problem:
                self._leave_out(len(mine), "", spec, problem)
                continue
            self.found.held["deterministic"][mine] = proven & (own["lower"][mine] >= self.budget)
            for place in np.flatnonzero(~proven).tolist():
                radius = own["lower"][mine[place]]
                self.found.problems.append(
                    f"sample {int(mine[place])}: {spec.partition(':')[0]} does not prove the claimed radius {radius:.6g}"
                )

    def _weaker(self, kind: str) -> None:
        """At the board's budget, by the certifiers of that class which the run names."""
        own = self.columns
        claimed = self.at[(own[f"lower_{kind}"][self.at] >= self.budget) & (own["upper"][self.at] > self.budget)]
        self.found.count += len(claimed)
        specs = dict.fromkeys(str(stage["spec"]) for stage in self.stages if stage["kind"] == "certifier")
        tried = 0
        for spec in specs if len(claimed) else ():
            rest = claimed[~self.found.held[kind][claimed]]
            try:
                method = self._certifier(spec, len(rest), kind)
                if method is None or tried == MOST:
                    continue
                tried += 1
                self.found.held[kind][rest] = self._proven(method, rest, np.full(len(rest), self.budget))
            except RobustkitError as problem:
                self._leave_out(len(rest), kind, spec, problem)

    def _certifier(self, spec: str, count: int, kind: str = "") -> Certifier | None:
        """The certifier of that name, None where it is of another class than `kind`; raises TooMuch where it costs too much."""
        if code_in(parse(spec)):
            raise BadInput(f"it names {code_in(parse(spec))[:60]!a}, which could be code")
        method = registry.make("certifier", spec)
        assert isinstance(method, Certifier)
        if kind and guarantee_class(method.guarantee) != kind:
            return None
        if not kind and guarantee_class(method.guarantee) != "deterministic":
            raise BadInput(f"its guarantee is {method.guarantee}")
        if kind == "statistical" and alpha_of(method.guarantee) > ALPHA:
            raise BadInput(f"it may err with probability {alpha_of(method.guarantee):g}, at most {ALPHA:g} is shown")
        effort = method.effort(self.subject.classifier, self.subject.data.shape)
        needed = effort * count * pace(self.subject.classifier, self.subject.data.images)
        self.limits.time(time.monotonic() - self.started + needed, f"{count} certificates of {spec[:60]}")
        return method

    def _leave_out(self, count: int, kind: str, spec: str, problem: RobustkitError) -> None:
        why = str(problem) if isinstance(problem, TooMuch) else f"{spec[:60]!a}: {problem}"
        self.found.left_out.append(f"{count} {kind or 'deterministic'} certificates were not computed again: {why}"[:400])

    def _proven(self, method: Certifier | None, at: Ints, radius: np.ndarray) -> Bools:
        assert method is not None
        return proven_again(self.subject, self.columns, method, at, radius, self.seed, self._tick)

    def _tick(self) -> None:
        self.limits.time(time.monotonic() - self.started, "computing certificates again")

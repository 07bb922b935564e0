"""The Plan: which stages a run has, in which order, and what each of them receives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from robustkit import registry, streams
from robustkit.core.comparisons import float_below
from robustkit.core.identity import from_library, identity
from robustkit.errors import BadInput
from robustkit.guarantees import guarantee_class
from robustkit.methods import Attack, Certifier, Method, StatisticalCertifier
from robustkit.spec import number_text
from robustkit.suites import SIGHTLESS, has_suite
from robustkit.suites import suite as find_suite
from robustkit.surface import Surface
from robustkit.threats import Threat
from robustkit.verdict.evidence import Evidence, Ints

TRIAL = 16
"""Open samples on which a suite's certifier is first tried."""

PROBING = "pgd:steps=40"
"""The attack on certified samples."""

PROBE = 64
"""Correct samples that the honesty checks look at."""


def probe(evidence: Evidence, seed: int) -> Ints:
    """Positions of up to 64 correct samples, drawn by seed."""
    correct = np.flatnonzero(evidence.correct)
    keys = streams.row_keys(seed, "probe", torch.from_numpy(evidence.index[correct]))
    return np.sort(correct[np.argsort(keys.numpy(), kind="stable")[:PROBE]])


@dataclass(frozen=True)
class Stage:
    """One method at one budget (settle), as a radius search over all correct samples, or as a probe:
    an attack on some certified samples, which finds nothing unless a certifier is wrong."""

    number: int
    method: Attack | Certifier
    mode: Literal["settle", "radius", "probe"]
    eps: Fraction
    on_trial: bool = False
    """A suite's certifier goes on after the trial only while it pays."""
    optional: bool = False
    """It comes from a suite, which leaves out what cannot work on the model."""
    seed: int = 0
    """Draws the samples of a probe."""
    gradients: Literal["", "surrogate", "deployed"] = ""
    """Whose gradients an attack follows, where the model declares a surrogate."""
    again: bool = False
    """An attack of the plan once more, on samples that were spared it by proofs which have turned out not to hold."""

    @property
    def kind(self) -> str:
        return "attack" if isinstance(self.method, Attack) else "certifier"

    @property
    def label(self) -> str:
        """Kind and specification, for example `certifier ibp`."""
        return f"{self.kind} {self.method.spec}"

    @property
    def id(self) -> str:
        """Folder name of its units."""
        budget = number_text(self.eps).replace("/", "over") if self.mode == "settle" else self.mode
        return f"{self.number:02d}-{self.method.name}-{budget}{self._code}"

    @cached_property
    def _code(self) -> str:
        """A digest of a method of the user's own: once its code has changed, its units are made anew. Of ours the version tells."""
        return "" if from_library(type(self.method)) else f"-{identity(self.method)[:12]}"

    @property
    def name(self) -> str:
        title = f"{self.method.title} {self.gradients}".strip()
        return title if self.mode == "settle" else f"{title} {self.mode}"

    def describe(self) -> dict[str, str | int]:
        """What the run's digest holds of it."""
        told: dict[str, str | int] = {
            "method": str(self.method.spec),
            "version": self.method.version,
            "mode": self.mode,
            "eps": number_text(self.eps),
            "trial": int(self.on_trial),
        }
        return told | ({"gradients": self.gradients} if self.gradients else {})

    def receives(self, evidence: Evidence) -> Ints:
        """Positions it works on: what nothing has settled at its budget, all correct samples, or the certified ones of the probe."""
        if self.mode == "probe":
            at = probe(evidence, self.seed)
            return at[evidence.lower[at] >= float_below(self.eps)]
        if self.mode == "radius":
            return np.flatnonzero(evidence.correct)
        return evidence.to_attack(self.eps) if self.kind == "attack" else evidence.open_at(self.eps)


def make_plan(
    threat: Threat,
    budgets: Sequence[Fraction],
    *,
    suite: str,
    attacks: str | Attack | Sequence[str | Attack] | None,
    certifiers: str | Certifier | Sequence[str | Certifier] | None,
    curve: bool,
    certify_radius: bool = False,
    seed: int = 0,
) -> list[Stage]:
    """All stages of a run: certifiers, then attacks, each at every budget, smallest first; a suite's
    certifiers that cost more than its first attack come behind that.

    Explicit attacks replace the suite's attacks, explicit certifiers its certifiers; `["none"]`
    means none. With `curve` (or `certify_radius`, for certifiers alone) radius stages over all
    correct samples follow: of the suite's searcher, of every minimum-norm attack that was named (its
    only stage), else of the first attack named. In a suite without trials, where certifiers are the
    point, they search behind the attack, whose witnesses they start from. A certifier that samples has
    one stage, its radii settle every budget. Where there are certifiers, a probe of what they certified comes last.
    """
    chosen = find_suite(suite, threat) if attacks is None or has_suite(suite, threat) else None
    provers = _methods("certifier", certifiers if certifiers is not None else chosen.certifiers if chosen else ())
    seekers = _methods("attack", attacks if attacks is not None else chosen.attacks if chosen else ())
    later = _methods("certifier", chosen.later) if chosen and certifiers is None else []
    searchers: list[Attack | Certifier] = []
    if curve and seekers:
        searchers = [method for method in seekers if isinstance(method, Attack) and method.minimum_norm] or seekers[:1]
        if chosen and attacks is None:
            searchers = [registry.make("attack", chosen.radius)]
    from_suite = {"attack": attacks is None, "certifier": certifiers is None}
    stages: list[Stage] = []

    def add(method: Attack | Certifier, mode: Literal["settle", "radius", "probe"], eps: Fraction, **more: Any) -> None:
        kind = "attack" if isinstance(method, Attack) else "certifier"
        stages.append(Stage(len(stages) + 1, method, mode, eps, optional=from_suite[kind] and mode != "probe", **more))

    for method in [*provers, *seekers[:1], *later, *seekers[1:]]:
        method.accepts(threat)
        if method in searchers and isinstance(method, Attack) and method.minimum_norm:
            continue  # its one run over all samples, below, settles every budget
        if isinstance(method, StatisticalCertifier) and (curve or certify_radius):
            continue
        trial = certifiers is None and isinstance(method, Certifier) and (chosen is None or chosen.trial)
        for eps in sorted(budgets):
            add(method, "settle", eps, on_trial=trial)
    top, proving_last = max(budgets), bool(chosen and not chosen.trial)
    radii = [*provers, *(later if proving_last else [])] if curve or certify_radius else []
    for method in [*searchers, *radii] if proving_last else [*radii, *searchers]:
        add(method, "radius", top)
    if provers or later:
        add(registry.make("attack", PROBING), "probe", top, seed=seed)
    return stages


def with_sound(stages: Sequence[Stage]) -> list[Stage]:
    """The stages with floating-point certificates in place of those in real arithmetic."""
    sound = registry.find("certifier", "sound")
    proves = [isinstance(s.method, Certifier) and not isinstance(s.method, sound) for s in stages]
    return [replace(s, method=sound(s.method)) if proof else s for s, proof in zip(stages, proves)]


def check_guarantees(stages: Sequence[Stage]) -> None:
    """Raises BadInput where certificates in real arithmetic and in floating point would end in one number."""
    provers = [s.method for s in stages if isinstance(s.method, Certifier) and guarantee_class(s.method.guarantee) == "deterministic"]
    if len({prover.guarantee for prover in provers}) > 1:
        listed = ", ".join(dict.fromkeys(f"{prover.spec} ({prover.guarantee})" for prover in provers))
        raise BadInput(f"certificates of different kinds never share a number: {listed}; use --sound for all of them, or one kind a run")


def with_surface(stages: Sequence[Stage], surface: Surface, adaptive: bool) -> list[Stage]:
    """The stages against a model that declares a surrogate: gradient attacks follow the surrogate's gradients
    first and then, in a stage of their own, those of the model as deployed; the latter only unless `adaptive`."""
    if surface.surrogate is None:
        return list(stages)
    found: list[Stage] = []
    for stage in stages:
        if not (isinstance(stage.method, Attack) and stage.method.access == "gradient"):
            found.append(stage)
            continue
        if adaptive:
            found.append(replace(stage, gradients="surrogate"))
        if stage.mode == "settle" or not adaptive:
            found.append(replace(stage, gradients="deployed"))
    return [replace(stage, number=i + 1) for i, stage in enumerate(found)]


def after_blindness(found: Sequence[str], stages: Sequence[Stage], threat: Threat, classes: int) -> list[Stage]:
    """The stages that answer blindness: the checks' own attacks that broke more, then what needs no gradient of the model.

    Each at every budget that the suite's attacks have, numbered on. Attacks that do not know the threat are left out.
    """
    budgets = sorted({s.eps for s in stages if isinstance(s.method, Attack) and s.mode == "settle" and s.optional})
    added: list[Stage] = []
    for spec in [*found, *SIGHTLESS]:
        attack = registry.make("attack", spec)
        assert isinstance(attack, Attack)
        try:
            attack.accepts(threat)
            attack.attempts(classes)
        except BadInput:
            continue
        added += [Stage(0, attack, "settle", eps, optional=True) for eps in budgets]
    return [replace(stage, number=len(stages) + i + 1) for i, stage in enumerate(added)]


def without(stages: Sequence[Stage], refused: Callable[[Stage], bool]) -> list[Stage]:
    """The stages that are not refused, numbered anew."""
    kept = [stage for stage in stages if not refused(stage)]
    return [replace(stage, number=i + 1) for i, stage in enumerate(kept)]


def certifiers_of(given: Sequence[str | Certifier]) -> list[Certifier]:
    """What specifications or certifiers stand for. Raises BadInput."""
    return [one for one in _methods("certifier", given) if isinstance(one, Certifier)]


def _methods(kind: str, given: str | Method | Sequence[str | Method]) -> list[Attack | Certifier]:
    """What specifications or methods stand for; `none` for nothing. Raises BadInput."""
    known = Attack if kind == "attack" else Certifier
    found: list[Attack | Certifier] = []
    for one in [given] if isinstance(given, (str, Method)) else given:
        if not isinstance(one, (str, known)):
            raise BadInput(f"{one!r} is no {kind}: expected a specification (see: robustkit list {kind}s) or an instance")
        if one != "none":
            found.append(registry.make(kind, one) if isinstance(one, str) else one)
    return found


def saved(stage: Stage, classes: int, stages: Sequence[Stage]) -> float:
    """Forward-equivalents a sample that the attacks behind a certifier cost at its budget, where they find nothing."""
    behind = [s for s in stages if isinstance(s.method, Attack) and s.mode == "settle" and s.eps == stage.eps and s.number > stage.number]
    return sum(s.method.cost(classes) for s in behind if isinstance(s.method, Attack))


def pays(settled: int, tried: int, cost: float, saves: float) -> bool:
    """Whether a certifier saves more than it costs, in forward-equivalents a sample, judged by its trial.

    One that costs less than a few attack steps goes on wherever it has proven anything: its answer is
    worth having for itself.
    """
    return settled > 0 if cost <= 5 else settled * saves > tried * cost

"""Certificates proven again: deterministic ones at the very radius that is claimed, statistical ones from new draws."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from robustkit import binomial, registry
from robustkit.errors import RobustkitError
from robustkit.evaluation.judge_witnesses import Arrays
from robustkit.evaluation.subject import Subject
from robustkit.evaluation.untrusted_names import code_in
from robustkit.guarantees import guarantee_class
from robustkit.methods import Certifier, StatisticalCertifier
from robustkit.models.asking import refuse_other_answers
from robustkit.numerics import PAD
from robustkit.spec import Spec, parse
from robustkit.verdict.evidence import Bools, Ints
from robustkit.verdict.proof import prove

CLOSE = 0.8
"""Share of a searched statistical radius that other draws have to reach."""

LOST = 0.1
"""Share of statistical certificates that may not come again: those near the border fall by chance."""


MOST, STEPS = 1_000_000, 1_000
"""Draws and steps that a certifier which a stranger names may ask for."""


@dataclass
class Certificates:
    """The certificates of one run, to be proven again."""

    subject: Subject
    own: Arrays
    stages: Sequence[Mapping[str, Any]]
    proven: int = 0
    """Certificates proven again so far."""
    left: list[str] = field(default_factory=list)
    """Those that could not be tried here, and why."""

    def deterministic(self, at: Ints | None = None) -> Iterator[str]:
        """Every certificate in `lower` (at positions `at`) at the very radius that is claimed."""
        own, at = self.own, np.arange(len(self.own["lower"])) if at is None else at
        claimed = at[(own["lower"][at] > 0) & (own["upper"][at] > 0)]
        for number in np.unique(own["lower_stage"][claimed]).tolist():
            mine = claimed[own["lower_stage"][claimed] == number]
            method = self._certifier(number, len(mine))
            if method is None:
                continue
            if guarantee_class(method.guarantee) != "deterministic":
                yield f"sample {int(mine[0])}: {method.spec} proves nothing deterministic ({len(mine)} such)"
                continue
            try:
                good = proven_again(self.subject, own, method, mine, own["lower"][mine])
            except RobustkitError as problem:
                self.left.append(f"{len(mine)} certificates of {method.spec}: {str(problem)[:120]}")
                continue
            self.proven += int(good.sum())
            for sample in mine[~good].tolist():
                yield f"sample {sample}: {method.name} does not prove the claimed radius {own['lower'][sample]:.6g}"

    def weaker(self, budgets: Sequence[float], at: Ints | None = None, seed: int | None = None) -> Iterator[str]:
        """Certificates of the other classes: each certifier that may have given them is run again.

        Conditional ones at the claimed radius. Statistical ones draw anew, from a seed that nobody knew, at the largest of
        the `budgets` (float64, rounded down) below the claim, or somewhat below it: radii of other draws differ. Where one
        in ten or more is lost, that is no chance.
        """
        own, at = self.own, np.arange(len(self.own["lower"])) if at is None else at
        for kind in ("statistical", "conditional"):
            claimed = at[(own[f"lower_{kind}"][at] > 0) & (own["upper"][at] > 0)]
            places = [
                place
                for place, stage in enumerate(self.stages)
                if stage["kind"] == "certifier" and guarantee_class(str(stage.get("guarantee", ""))) == kind
            ]
            if not len(claimed):
                continue
            if not places:
                yield f"{len(claimed)} certificates are called {kind}, and no stage gives such"
                continue
            radius = own[f"lower_{kind}"][claimed]
            radius = _reachable(radius, budgets) if kind == "statistical" else radius
            again = np.zeros(len(claimed), dtype=bool)
            tried = False
            for place in places:
                method = self._certifier(place, len(claimed))
                if method is None:
                    continue
                try:
                    again |= proven_again(self.subject, own, method, claimed, radius, seed)
                    tried = True
                except RobustkitError as problem:
                    self.left.append(f"{len(claimed)} certificates of {method.spec}: {str(problem)[:120]}")
            if not tried:
                continue
            lost = int((~again).sum())
            self.proven += len(claimed) - lost
            if kind == "conditional" and lost:
                yield f"sample {int(claimed[~again][0])}: its conditional certificate is not proven again ({lost} such)"
            elif lost and binomial.at_least(lost, len(claimed), LOST) < 0.01:
                yield f"{lost} of {len(claimed)} statistical certificates did not come again"

    def _certifier(self, place: int, count: int) -> Certifier | None:
        """The certifier of a stage; None, and why in `left`, where there is none here."""
        spec = str(self.stages[place]["spec"]) if 0 <= place < len(self.stages) else ""
        try:
            if not spec or code_in(parse(spec)):
                raise RobustkitError("no bundled certifier")
            if _endless(parse(spec)):
                raise RobustkitError(f"it asks for more than {MOST:,} draws or {STEPS:,} steps")
            method = registry.make("certifier", spec)
        except RobustkitError as problem:
            self.left.append(f"{count} certificates of {spec[:60]!a}: {str(problem)[:120]}")
            return None
        return method if isinstance(method, Certifier) else None


def proven_again(
    subject: Subject,
    own: Arrays,
    method: Certifier,
    at: Ints,
    radius: np.ndarray,
    seed: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Bools:
    """(M,) whether a certifier proves each radius (M,) of the samples at positions `at` once more.

    Args:
        seed: of new draws, by default one that nobody knew.
        tick: called between parts; what it raises ends the work.
    """
    device, good = subject.classifier.device, []
    if isinstance(method, StatisticalCertifier):
        sample = method.sample(subject.classifier, subject.judge.threat, secrets.randbits(31) if seed is None else seed)
        parts = [slice(first, first + PAD) for first in range(0, len(at), PAD)]
    else:
        refuse_other_answers(subject.classifier, subject.images(at[:PAD]))
        bound, parts = method.bind(subject.classifier, subject.judge.threat), [*subject.batches(len(at))]
    for part in parts:
        tick()
        index, y = (torch.from_numpy(own[key][at[part]]) for key in ("index", "label"))
        x, y, eps = subject.images(at[part]).to(device), y.to(device), torch.from_numpy(radius[part])
        if isinstance(method, StatisticalCertifier):
            good.append(sample(index, x, y, eps, tick)[0].cpu() >= eps)
        else:
            good.append(prove(bound, x, y, eps.to(device), scale=subject.judge.logits(x).abs().amax(1))[0].cpu())
    return torch.cat(good).numpy() if good else np.zeros(0, dtype=bool)


def _reachable(radius: np.ndarray, budgets: Sequence[float]) -> np.ndarray:
    """The largest budget that each radius covers; a share of the radius where it covers none."""
    found = CLOSE * radius
    for budget in sorted(budgets):
        found = np.where(radius >= budget, np.maximum(found, budget), found)
    return found


def _endless(spec: Spec) -> bool:
    """Whether an option of a certifier, at any depth, asks for work without end."""
    for key, value in [("", value) for value in spec.items] + [*spec.options.items()]:
        if isinstance(value, Spec) and _endless(value):
            return True
        if isinstance(value, Fraction) and value > (STEPS if key in ("steps", "iterations", "looks") else MOST):
            return True
    return False

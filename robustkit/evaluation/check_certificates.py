"""Certificates proven again: deterministic ones at the very radius that is claimed, statistical ones from new draws."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from robustkit.numerics import PAD
from robustkit.spec import parse
from robustkit.verdict.evidence import Ints
from robustkit.verdict.proof import prove

CLOSE = 0.8
"""Share of a searched statistical radius that other draws have to reach."""

LOST = 0.1
"""Share of statistical certificates that may not come again: those near the border fall by chance."""


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
                bound = method.bind(self.subject.classifier, self.subject.judge.threat)
            except RobustkitError as problem:
                self.left.append(f"{len(mine)} certificates of {method.spec}: {str(problem)[:120]}")
                continue
            for rows in self.subject.batches(len(mine)):
                some = mine[rows]
                x = self.subject.images(some).to(self.subject.classifier.device)
                y, radius = (torch.from_numpy(own[key][some]).to(x.device) for key in ("label", "lower"))
                good, _ = prove(bound, x, y, radius, scale=self.subject.judge.logits(x).abs().amax(1))
                self.proven += int(good.sum())
                for place in torch.nonzero(~good)[:, 0].tolist():
                    yield (f"sample {int(some[place])}: {method.name} does not prove the claimed radius {own['lower'][some[place]]:.6g}")

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
                    again |= self._redone(method, claimed, radius, seed)
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

    def _redone(self, method: Certifier, at: Ints, radius: np.ndarray, seed: int | None) -> np.ndarray:
        """(M,) bool: whether each radius is proven once more."""
        subject, good = self.subject, []
        device = subject.classifier.device
        if isinstance(method, StatisticalCertifier):
            sample = method.sample(subject.classifier, subject.judge.threat, secrets.randbits(31) if seed is None else seed)
            for first in range(0, len(at), PAD):
                some = at[first : first + PAD]
                y, index = (torch.from_numpy(self.own[key][some]) for key in ("label", "index"))
                eps = torch.from_numpy(radius[first : first + PAD])
                found = sample(index, subject.images(some).to(device), y.to(device), eps, lambda: None)[0]
                good.append((found.cpu() >= eps).numpy())
            return np.concatenate(good)
        bound = method.bind(subject.classifier, subject.judge.threat)
        for rows in subject.batches(len(at)):
            some = at[rows]
            x = subject.images(some).to(device)
            y, eps = torch.from_numpy(self.own["label"][some]).to(device), torch.from_numpy(radius[rows]).to(device)
            good.append(prove(bound, x, y, eps, scale=subject.judge.logits(x).abs().amax(1))[0].cpu().numpy())
        return np.concatenate(good)

    def _certifier(self, place: int, count: int) -> Certifier | None:
        """The certifier of a stage; None, and why in `left`, where there is none here."""
        spec = str(self.stages[place]["spec"]) if 0 <= place < len(self.stages) else ""
        try:
            if not spec or code_in(parse(spec)):
                raise RobustkitError("no bundled certifier")
            method = registry.make("certifier", spec)
        except RobustkitError as problem:
            self.left.append(f"{count} certificates of {spec[:60]!a}: {str(problem)[:120]}")
            return None
        return method if isinstance(method, Certifier) else None


def _reachable(radius: np.ndarray, budgets: Sequence[float]) -> np.ndarray:
    """The largest budget that each radius covers; a share of the radius where it covers none."""
    found = CLOSE * radius
    for budget in sorted(budgets):
        found = np.where(radius >= budget, np.maximum(found, budget), found)
    return found

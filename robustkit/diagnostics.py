"""Honesty checks that run by themselves on a fixed probe of correct samples.

Each check is stored as {check, status, message, cure}; status is pass, warn, error or skipped.
Comparisons are flagged at a one-sided paired sign test p < 0.01 with a net difference of at least
5 % of the probe, so that sound models are not flagged. What to look for: Athalye et al. 2018
(arXiv 1802.00420), Carlini et al. 2019 (1902.06705), Croce & Hein 2020 (2003.01690).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from scipy.stats import binom, binomtest
from torch import Tensor

from robustkit import registry
from robustkit.data import Data
from robustkit.driver import BatchSize, Driver, Outcome, Samples
from robustkit.errors import BadInput
from robustkit.evidence import Evidence, Ints
from robustkit.judge import Judge
from robustkit.methods import Attack
from robustkit.numerics import PAD, float_below
from robustkit.plan import Stage, probe
from robustkit.spec import build

ENOUGH = 200
LEVEL, NET = 0.01, 0.05

Finding = dict[str, str]


def flagged(gains: int, losses: int, probe: int) -> bool:
    """Whether one method beats another on the probe: `gains` samples only it breaks, `losses` only the other."""
    return gains - losses >= max(1, NET * probe) and float(binom.sf(gains - 1, gains + losses, 0.5)) < LEVEL


@dataclass
class Examination:
    """The checks of one run."""

    judge: Judge
    data: Data
    evidence: Evidence
    logits: Tensor
    targets: Tensor
    stages: Sequence[Stage]
    seed: int
    batch_size: BatchSize
    tick: Callable[[int], None]

    def run(self) -> list[Finding]:
        """All findings, in a fixed order."""
        self.probe: Ints = probe(self.evidence, self.seed)
        checks = [
            self.enough_samples,
            self.training_data,
            self.clean_accuracy,
            self.train_mode,
            self.softmax,
            self.repeatable,
            self.zero_gradients,
            self.converged,
            self.unbounded,
        ]
        return [self._one(check) for check in checks]

    def _one(self, check: Callable[[], tuple[str, str, str]]) -> Finding:
        name = check.__name__.replace("_", " ")
        if check.__name__ in ("softmax", "repeatable", "zero_gradients", "converged", "unbounded") and not len(self.probe):
            status, message, cure = "skipped", "no sample is classified correctly", ""
        else:
            try:
                status, message, cure = check()
            except BadInput as problem:
                status, message, cure = "skipped", str(problem), ""
            except RuntimeError as problem:  # what a model that hides its gradients raises; the run stands without this check
                status, message, cure = "skipped", f"could not be done: {(str(problem).splitlines() or ['?'])[0]}", ""
        return {"check": name, "status": status, "message": message, "cure": cure}

    def enough_samples(self) -> tuple[str, str, str]:
        count = len(self.evidence)
        if count < ENOUGH:
            return "warn", f"only {count} samples: the 95 % intervals are wide", f"evaluate at least {ENOUGH} samples, better 1000"
        return "pass", f"{count} samples", ""

    def training_data(self) -> tuple[str, str, str]:
        meta = self.judge.classifier.metadata
        seen, source = meta.get("trained_indices"), (meta.get("data_origin"), meta.get("data_sha256"))
        if not seen:
            return "skipped", "the model does not say what it was trained on", ""
        if source != (self.data.origin, self.data.sha256):
            return "pass", f"trained on other data ({meta.get('data', source[0])})", ""
        inside = np.zeros(len(self.evidence), dtype=bool)
        try:
            for run in seen.split(","):
                first, _, last = run.partition("-")
                inside |= (self.evidence.index >= int(first)) & (self.evidence.index <= int(last or first))
        except ValueError:
            return "skipped", "what the model says of its training data cannot be read", ""
        if inside.any():
            message = f"{int(inside.sum())} of {len(inside)} evaluated samples were in the model's training data"
            return "error", message, "evaluate on split=test, or on data the model has not seen"
        return "pass", "no evaluated sample was in the model's training data", ""

    def clean_accuracy(self) -> tuple[str, str, str]:
        count, classes = len(self.evidence), self.logits.shape[1]
        right = int(self.evidence.correct.sum())
        if binomtest(right, count, 1 / classes, alternative="greater").pvalue > LEVEL:
            return (
                "error",
                f"clean accuracy {right / count:.3f} is no better than chance ({1 / classes:.3f})",
                "give images in [0,1] and normalise once: either in the model or by mean/std, not both; check the labels",
            )
        return "pass", f"clean accuracy {right / count:.3f} is above chance", ""

    def train_mode(self) -> tuple[str, str, str]:
        if self.judge.classifier.was_training:
            message = "the model was handed over in train mode; it was evaluated in eval mode"
            return "warn", message, "call model.eval() before handing it over"
        return "pass", "eval mode", ""

    def softmax(self) -> tuple[str, str, str]:
        logits = self.logits[torch.from_numpy(self.probe)]
        sums = (logits.sum(1) - 1).abs().max()
        if bool((logits >= 0).all()) and bool((logits <= 1).all()) and float(sums) < 1e-3:
            return "warn", "the outputs look like probabilities, not logits: gradients may vanish", "return the logits, without softmax"
        return "pass", "the outputs are logits", ""

    def repeatable(self) -> tuple[str, str, str]:
        x = self._images().to(self.judge.classifier.device)
        first, second = self.judge.logits(x), self.judge.logits(x)
        scale = 1 + float(first.abs().max())
        apart = float((first - second).abs().max())
        if not apart <= 1e-4 * scale:
            return (
                "error",
                f"two forwards of the same images differ by {apart:.3g}: the model is random or keeps state",
                "turn randomness off, or evaluate it as a random model with repeated draws; one lucky draw is no robustness",
            )
        return "pass", "two forwards of the same images agree", ""

    def zero_gradients(self) -> tuple[str, str, str]:
        classifier, threat = self.judge.classifier, self.judge.threat
        x = self._images().to(classifier.device)
        y = torch.from_numpy(self.evidence.label[self.probe]).to(classifier.device)
        largest: list[Tensor] = []
        for i in range(0, len(x), PAD):
            rows, label = x[i : i + PAD], y[i : i + PAD, None]

            def cross_entropy(image: Tensor, label: Tensor = label) -> Tensor:
                logits = classifier.forward(image)
                return logits.logsumexp(1) - logits.gather(1, label)[:, 0]

            try:
                gradient, _ = threat.gradient(rows, threat.zero(rows), cross_entropy)
            except RuntimeError as problem:
                return (
                    "error",
                    f"no gradient reaches the input ({str(problem).splitlines()[0]})",
                    "remove what cuts the graph (detach, numpy, argmax), or give a differentiable surrogate; use black-box attacks",
                )
            largest.append(gradient.flatten(1).abs().amax(1))
        zero = float((torch.cat(largest) == 0).double().mean())
        if zero > NET:
            return (
                "error",
                f"the gradient is exactly zero for {zero:.0%} of the probe: gradient attacks see nothing",
                "use black-box attacks, a differentiable surrogate, or loss=margin; rescale saturated logits",
            )
        return "pass", f"the gradient is zero for {zero:.0%} of the probe", ""

    def converged(self) -> tuple[str, str, str]:
        used = [s.method for s in self.stages if isinstance(s.method, Attack) and s.mode == "settle"]
        if not used:
            return "skipped", "no attack was run", ""
        stronger = self._stronger(used)
        budget = float_below(self.judge.threat.eps)
        before = self.evidence.upper[self.probe] <= budget
        after = self._attack(stronger, budget)
        gains, losses = int((after & ~before).sum()), int((before & ~after).sum())
        if flagged(gains, losses, len(self.probe)):
            message = f"{stronger.spec} breaks {gains} of {len(self.probe)} probe samples that the run did not"
            cure = "use --suite standard or full, or raise steps and restarts: they still lower the number"
            return "error", message, cure
        return "pass", f"twice the steps and restarts break {gains} more of {len(self.probe)} probe samples", ""

    def unbounded(self) -> tuple[str, str, str]:
        used = [s.method for s in self.stages if isinstance(s.method, Attack) and s.mode == "settle"]
        if not used:
            return "skipped", "no attack was run", ""
        if not self.judge.threat.reaches_every_image:
            return "skipped", f"threat {self.judge.threat.name} does not reach every image, whatever its budget", ""
        most = self.judge.threat.unbounded(self.data.shape)
        attack = registry.make("attack", "pgd:steps=40,restarts=2")
        left = int((~self._attack(attack, float_below(most))).sum())
        if flagged(left, 0, len(self.probe)):
            return (
                "error",
                f"{left} of {len(self.probe)} probe samples survive an unbounded budget, where every image is allowed",
                "the gradients mislead the attack: use black-box attacks or an attack adapted to the defense",
            )
        return "pass", f"{left} of {len(self.probe)} probe samples survive an unbounded budget", ""

    def _stronger(self, used: Sequence[Attack]) -> Attack:
        """The run's last gradient attack that stays within the budget (else its last at all) with twice its
        steps and restarts; PGD-100 x 5 where there is none."""
        iterated = [a for a in used if a.access == "gradient" and {"steps", "restarts"} <= a.__dict__.keys()]
        if iterated:
            attack = ([a for a in iterated if a.bounded] or iterated)[-1]
            spec, fields = attack.spec, attack.__dict__
            options = dict(spec.options) | {"steps": 2 * fields["steps"], "restarts": 2 * fields["restarts"]}
            return build(type(attack), type(spec)(spec.name, (), {k: _exact(v) for k, v in options.items()}), "attack")
        found = registry.make("attack", "pgd:steps=100,restarts=5")
        assert isinstance(found, Attack)
        return found

    def _images(self) -> Tensor:
        return self.data.images(torch.from_numpy(self.probe))

    def _attack(self, attack: Attack, budget: float) -> Any:
        """(probe,) bool: who falls to this attack at this budget; certified samples are not tried."""
        fell = np.zeros(len(self.probe), dtype=bool)
        tried = np.flatnonzero(self.evidence.lower[self.probe] < budget)
        if len(tried):
            fell[tried] = self._hits(attack, budget, self.probe[tried])
        return fell

    def _hits(self, attack: Attack, budget: float, probe: Ints) -> Any:
        at = torch.from_numpy(probe)
        label = torch.from_numpy(self.evidence.label)
        eps = torch.full((len(at),), budget, dtype=torch.float64)
        samples = Samples(self.data.index[at], label[at], self.targets[at], self.logits[at], eps, lambda i: self.data.images(at[i]))
        found: list[Outcome] = []
        Driver(attack, self.judge, seed=self.seed, batch_size=self.batch_size, tick=lambda _: self.tick(0)).run(samples, found.append)
        outcome = Outcome.join(found)
        return outcome.success[outcome.at.argsort()].numpy()


def _exact(value: Any) -> Any:
    return Fraction(value) if isinstance(value, int) else value

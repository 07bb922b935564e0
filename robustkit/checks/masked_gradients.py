"""Signs of masked gradients: methods that should lose to plain PGD, and do not.

All attacks run on the same probe at the run's budget, next to PGD with 40 steps on cross-entropy,
which is what most evaluations report. Where one of them clearly beats it, PGD's figure for this
model is too high: an error where the run has missed what was found, a warning where the run's own
attacks were strong enough. What to look for: Athalye et al. 2018 (arXiv 1802.00420), Carlini et al.
2019 (1902.06705), Croce & Hein 2020 (2003.01690), Pintor et al. 2022 (2106.09947).

Deliberate deviation: instead of examples from a second model, which nobody has handed over, the
surrogate is the model itself with its gradients averaged over noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustkit import registry, streams
from robustkit.attacks.noise import Noise
from robustkit.checks.probe import Probe, Verdict, flagged
from robustkit.core.comparisons import rounding_width
from robustkit.errors import BadInput
from robustkit.methods import Attack
from robustkit.plan import Stage

PLAIN = "pgd:steps=40"
"""What the others are compared with."""


@dataclass
class Comparisons:
    """The checks that run attacks side by side."""

    probe: Probe
    stages: Sequence[Stage] = ()
    """The run's own."""

    def black_box(self) -> Verdict:
        """Square, which sees scores only; where the run has sent such an attack after its gradient attacks, what that has found."""
        cure = "use black-box attacks as well (--suite standard): gradients mislead here"
        own = self._own_black_box()
        if own is None:
            return self._against("square:queries=1000", cure)
        numbers, attack = own
        probe = self.probe
        found = probe.broken & np.isin(probe.evidence.upper_stage[probe.at], numbers)
        gains = int(found.sum())
        message = f"the run's {attack.name} breaks {gains} of {len(probe)} probe samples that its gradient attacks do not"
        losses = probe.misses(attack, probe.broken & ~found, gains)
        if losses is None:
            return "pass", message, ""
        message = f"{message}, and misses {losses} that they do"
        if not flagged(gains, losses, len(probe)):
            return "pass", message, ""
        return "warn", message, "report this figure, not one by gradient attacks alone"

    def _own_black_box(self) -> tuple[list[int], Attack] | None:
        """The run's last stages that need no gradient, behind one that follows gradients, and the last one's attack."""
        attacks = [(s.number, s.method) for s in self.stages if isinstance(s.method, Attack) and s.mode == "settle"]
        first = next((i for i, (_, attack) in enumerate(attacks) if attack.access == "gradient"), len(attacks))
        if first == len(attacks) or attacks[-1][1].access == "gradient":
            return None
        return [number for number, attack in attacks[first:] if attack.access != "gradient"], attacks[-1][1]

    def single_step(self) -> Verdict:
        return self._against("fgsm", "the loss is too rough to follow: use more restarts and black-box attacks (--suite standard)")

    def random_noise(self) -> Verdict:
        return self._against(Noise(), "the attack does worse than chance: use black-box attacks (--suite standard)")

    def smoothed_gradients(self) -> Verdict:
        cure = "use attacks that average gradients (second-order) or need none (square): single gradients mislead here"
        return self._against("second-order:steps=20,draws=4", cure)

    def choice_of_loss(self) -> Verdict:
        """APGD on the targeted DLR loss, which does not depend on the scale of the logits."""
        cure = "do not report PGD on cross-entropy alone: use --suite standard, which also has losses free of the logits' scale"
        for apgd in ("apgd:loss=dlr-targeted,steps=20,restarts=1", "apgd-l1:loss=dlr-targeted,steps=40,restarts=1"):
            with suppress(BadInput):  # too few classes for DLR, or a threat that it does not know
                return self._against(apgd, cure)
        return self._against("pgd:steps=40,loss=margin", cure)

    def _against(self, other: str | Attack, cure: str) -> Verdict:
        probe = self.probe
        attack: Attack = registry.make("attack", other) if isinstance(other, str) else other
        plain = probe.attack(registry.make("attack", PLAIN))
        found = probe.attack(attack, among=~plain)
        gains = int((found & ~plain).sum())
        message = f"{attack.name} breaks {gains} of {len(probe)} probe samples that {PLAIN} does not"
        losses = probe.misses(attack, plain, gains)
        if losses is None:
            return "pass", message, ""
        message = f"{message}, and misses {losses} that it does"
        if not flagged(gains, losses, len(probe)):
            return "pass", message, ""
        missed = int((found & ~plain & ~probe.broken).sum())
        if missed:
            return "error", f"{message}; the run has missed {missed} of them, its robust accuracy is too high", cure
        return "warn", f"{message}; the run's own attacks have found them all", "report this figure, not one by PGD alone"

    def finite_differences(self) -> Verdict:
        """Whether the gradient says how the model's output changes, along itself and along random directions."""
        if self.probe.judge.classifier.random:
            return "skipped", "the output of a random model has no slope of its own", ""
        if self.probe.judge.classifier.surface.surrogate:
            return "skipped", "the model declares that its gradients are a substitute's", ""
        wrong = _misleading(self.probe)
        count = len(self.probe)
        if flagged(wrong, 0, count):
            return (
                "warn",
                f"for {wrong} of {count} probe samples the gradient is not the slope of the output: a substitute, or the output jumps",
                "attack without gradients as well (square), and say which substitute is differentiated",
            )
        return "pass", f"the gradient is the slope of the output for {count - wrong} of {count} probe samples", ""


STEP = 1e-3
"""Largest change of a pixel in a finite difference."""

DIRECTIONS = 4
"""Random directions besides the gradient's own."""


def _misleading(probe: Probe) -> int:
    """Samples whose central differences are off by more than half of what the gradient says.

    What is differentiated is the difference between the likeliest wrong class and the label. Images are first
    drawn in from the edge of the box, so that every point looked at lies inside.
    """
    classifier = probe.judge.classifier
    x, y = probe.images() * (1 - 2 * STEP) + STEP, probe.labels()
    logits = classifier.logits64(x)
    other = logits.scatter(1, y[:, None], -torch.inf).argmax(1)

    def gap(logits: Tensor) -> Tensor:
        return (logits.gather(1, other[:, None]) - logits.gather(1, y[:, None]))[:, 0]

    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        values = gap(classifier.forward(leaf))
        if not values.requires_grad:
            raise BadInput("no gradient reaches the input")
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
    keys = streams.row_keys(probe.seed, "finite differences", torch.arange(len(x)) + 1)
    error, size = torch.zeros(len(x), dtype=torch.float64), torch.zeros(len(x), dtype=torch.float64)
    for number in range(DIRECTIONS + 1):
        drawn = streams.normal(streams.child(keys, number), tuple(x.shape[1:])).to(x.device) if number else gradient
        move = STEP * drawn / drawn.flatten(1).abs().amax(1).clamp(min=1e-30).view(-1, 1, 1, 1)
        slope = (gradient.double() * move.double()).flatten(1).sum(1)
        change = (gap(classifier.logits64(x + move)) - gap(classifier.logits64(x - move))) / 2
        error += (change - slope).square().cpu()
        size += (change.square() + slope.square()).cpu() / 2
    return int(((error.sqrt() > 0.5 * size.sqrt()) & (error.sqrt() > rounding_width(logits).cpu())).sum())

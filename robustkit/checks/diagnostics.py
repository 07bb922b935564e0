"""Honesty checks that run by themselves on a fixed probe of correct samples.

Each check is stored as {check, status, message, cure}; status is pass, warn, error or skipped. What
runs attacks side by side is in masked_gradients.py, the rule when a difference counts in probe.py.
What to look for: Athalye et al. 2018 (arXiv 1802.00420), Carlini et al. 2019 (1902.06705), Croce &
Hein 2020 (2003.01690).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustkit import registry
from robustkit.batch_size import BatchSize, batch_rows
from robustkit.binomial import at_least
from robustkit.checks.masked_gradients import Comparisons
from robustkit.checks.probe import LEVEL, NET, Finding, Probe, Verdict, finding, flagged
from robustkit.core.answers import Answers
from robustkit.core.comparisons import float_below
from robustkit.core.modes import layers_in_training
from robustkit.data import Data
from robustkit.errors import first_line
from robustkit.methods import Attack
from robustkit.models.asking import CLEARLY, Asking, few, left_behind
from robustkit.numerics import PAD, padded
from robustkit.plan import Stage
from robustkit.search.loss_scale import loss_scale
from robustkit.sharing import ALONE, Sharing
from robustkit.spec import build
from robustkit.store import UNIT
from robustkit.streams import row_keys
from robustkit.verdict.evidence import Bools, Evidence
from robustkit.verdict.judge import Judge

ENOUGH = 200


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
    pool: Callable[[], Data] | None = None
    attacks: bool = True
    """Whether to examine the run's attacks."""
    off: bool = False
    """Look at what costs nothing only."""
    sharing: Sharing = ALONE
    after: bool = False
    """Made once more, after the run has answered findings that its attacks were blind: checks of what gradient
    attacks see then look at open samples only, and pass where hardly any is left."""

    def run(self) -> list[Finding]:
        """All findings, in a fixed order."""
        compare = Comparisons(self.probe, self.stages)
        always = [self.enough_samples, self.training_data, self.clean_accuracy, self.train_mode]
        of_the_probe = [self.softmax, self.repeatable, self.batch, self.state, self.zero_gradients, compare.finite_differences]
        of_attacks = [
            self.converged,
            self.unbounded,
            compare.single_step,
            compare.random_noise,
            compare.choice_of_loss,
            compare.smoothed_gradients,
            compare.black_box,
        ]
        findings = []
        of_the_model = [*of_the_probe, *(of_attacks if self.attacks else [])]
        for check in [*always, *([] if self.off else of_the_model)]:
            self.tick(0)
            name = check.__name__.replace("_", " ")
            lacking = ""
            if check not in always and not len(self.probe):
                lacking = "no sample is classified correctly"
            elif check in of_attacks and not self.used:
                lacking = "no attack was run"
            findings.append(Finding(check=name, status="skipped", message=lacking, cure="") if lacking else finding(name, check))
        if self.off:
            message = "the honesty checks were switched off: nobody has looked whether gradients mislead the attacks"
            findings.append(
                Finding(check="checks", status="warn", message=message, cure="the same command without --checks off makes them")
            )
        elif not self.attacks and self.used:
            spared = "the attack only spares the certifiers work: the empirical figure is no test of robustness"
            findings.append(Finding(check="attacks", status="skipped", message=spared, cure="use robustkit evaluate for that"))
        return findings

    @cached_property
    def probe(self) -> Probe:
        """The samples looked at."""
        subject = (self.judge, self.data, self.evidence, self.logits, self.targets)
        return Probe(*subject, self.seed, self.batch_size, self.tick, self.pool, self.sharing)

    @property
    def used(self) -> list[Attack]:
        """The run's attacks at a budget, and minimum-norm attacks, whose one run settles every budget."""
        attacks = [(s.method, s.mode) for s in self.stages if isinstance(s.method, Attack)]
        return [method for method, mode in attacks if mode == "settle" or (mode == "radius" and method.minimum_norm)]

    def enough_samples(self) -> Verdict:
        count = len(self.evidence)
        if count < ENOUGH:
            return "warn", f"only {count} samples: the 95 % intervals are wide", f"evaluate at least {ENOUGH} samples, better 1000"
        return "pass", f"{count} samples", ""

    def training_data(self) -> Verdict:
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

    def clean_accuracy(self) -> Verdict:
        count, classes = len(self.evidence), self.logits.shape[1]
        right = int(self.evidence.correct.sum())
        if at_least(right, count, 1 / classes) > LEVEL:
            return (
                "error",
                f"clean accuracy {right / count:.3f} is no better than chance ({1 / classes:.3f})",
                "give images in [0,1] and normalise once: either in the model or by mean/std, not both; check the labels",
            )
        return "pass", f"clean accuracy {right / count:.3f} is above chance", ""

    def train_mode(self) -> Verdict:
        classifier = self.judge.classifier
        held = layers_in_training(classifier.module)
        if held:
            message = f"a forward sets {few(held)} to training mode, and could not be held in eval mode"
            return "error", message, "leave train() and training out of forward: no figure is about the model in eval mode"
        if classifier.switched:
            message = f"a forward sets {few(classifier.switched)} to training mode; the model was evaluated with all layers in eval mode"
            return "warn", message, "leave train() out of forward"
        if classifier.in_training:
            message = f"handed over in training mode: {few(classifier.in_training)}; the model was evaluated with all layers in eval mode"
            return "warn", message, "call model.eval() before handing it over, and nothing.train() behind it"
        return "pass", "eval mode", ""

    def softmax(self) -> Verdict:
        if self.judge.classifier.random:
            return "skipped", "of a random model the votes are kept, not the logits", ""
        logits = self.logits[torch.from_numpy(self.probe.at)]
        sums = (logits.sum(1) - 1).abs().max()
        if bool((logits >= 0).all()) and bool((logits <= 1).all()) and float(sums) < 1e-3:
            return "warn", "the outputs look like probabilities, not logits: gradients may vanish", "return the logits, without softmax"
        return "pass", "the outputs are logits", ""

    def repeatable(self) -> Verdict:
        if self.judge.classifier.random:
            return "pass", "the model declares that it is random; it was judged by votes of fresh draws", ""
        if self._repeats:
            cure = "turn randomness off, or declare it (Surface(random='vote')), to be judged by many draws; one lucky draw proves nothing"
            return "error", self._repeats, cure
        return "pass", "two forwards of the same images agree", ""

    def batch(self) -> Verdict:
        if self.judge.classifier.random:
            return "skipped", "the answers of a random model are shares of votes", ""
        if self._repeats:
            return "skipped", "the model does not even repeat its answer in the same batch", ""
        rows = self._rows
        beside = self.data.images(slice(0, rows)).to(self.judge.classifier.device)
        status, message = self._asking.batch(rows, beside, single=len(self.probe) + PAD)
        then, now = self.logits[torch.from_numpy(self.probe.at)], self._asking.answers.logits[: len(self.probe)].cpu()
        count = 0 if self._asked_before else int(self._otherwise(then, now).sum())
        if count and status != "error":
            where = f"in a batch of {padded(2 * len(then))}, than in the run's of {rows}"
            status, message = "error", f"{count} of {len(then)} images get another answer {where}"
        cure = {
            "error": "answer every image by itself: no softmax, mean or statistics over the batch (dim 0), no look at its size",
            "warn": "keep the dimension of the batch also where it is 1 (no squeeze() without a dimension)",
        }
        return status, message, cure.get(status, "")

    def state(self) -> Verdict:
        if self.judge.classifier.random:
            return "skipped", "a random model draws anew in every forward", ""
        kept = self._asking.remembers()
        found = left_behind(kept) if kept else ""
        if not found and not self._repeats:
            found = self._asking.looks_at() or self._asked_before
        if found:
            cure = "answer every image by what it shows, not by what was asked before or how: no counters or switches in forward"
            return "error", found, cure
        return "pass", "nothing but the image changes an answer: no call, no gradient mode, no dtype", ""

    @cached_property
    def _asking(self) -> Asking:
        """Asks about the probe's images, and about one random point in the ball of each."""
        probe, threat = self.probe, self.judge.threat
        x = probe.images()
        keys = row_keys(self.seed, "asked otherwise", self.data.index[torch.from_numpy(probe.at)]).to(x.device)
        eps = torch.full((len(x),), probe.budget, dtype=torch.float64, device=x.device)
        return Asking(self.judge.classifier, torch.cat([x, threat.apply(x, threat.random(x, eps, keys))]))

    @cached_property
    def _repeats(self) -> str:
        return self._asking.repeats()

    @cached_property
    def _asked_before(self) -> str:
        """Whether the first batch of the run, before all its other calls, was answered otherwise than the same batch is now."""
        rows = min(self._rows, UNIT, len(self.data))
        now = self.judge.logits(self.data.images(slice(0, rows)).to(self.judge.classifier.device)).cpu()
        count = int(self._otherwise(self.logits[:rows], now).sum())
        return f"{count} of the run's first {rows} images get another answer than at its beginning" if count else ""

    @property
    def _rows(self) -> int:
        """Rows in a batch of the run."""
        return min(batch_rows(self.batch_size, self.data.shape, self.judge.classifier.device), padded(len(self.data)))

    def _otherwise(self, then: Tensor, now: Tensor) -> Tensor:
        """(R,) bool: which answers (R,K) have changed."""
        before = Answers(then, self.judge.classifier.half)
        return before.decided_otherwise(now) | before.moved(now, CLEARLY)

    def zero_gradients(self) -> Verdict:
        if self._settled:
            return self._nothing_left()
        classifier, threat = self.judge.classifier, self.judge.threat
        where = torch.from_numpy(self._looked_at).to(classifier.device)
        x, y = self.probe.images()[where], self.probe.labels()[where]
        logits = self.logits[torch.from_numpy(self.probe.at[self._looked_at])].to(x.device)
        largest: list[Tensor] = []
        for i in range(0, len(x), PAD):
            rows, label = x[i : i + PAD], y[i : i + PAD, None]
            scale = torch.ones(len(rows), device=x.device) if classifier.random else loss_scale(logits[i : i + PAD])

            def cross_entropy(image: Tensor, label: Tensor = label, scale: Tensor = scale) -> Tensor:
                logits = classifier.surrogate(image) if classifier.surface.surrogate else classifier.forward(image)
                logits = logits * scale[:, None]
                return logits.logsumexp(1) - logits.gather(1, label)[:, 0]

            try:
                gradient, _ = threat.gradient(rows, threat.zero(rows), cross_entropy)
            except RuntimeError as problem:
                return (
                    "error",
                    f"no gradient reaches the input ({first_line(problem)})",
                    "remove what cuts the graph (detach, numpy, argmax), or give a differentiable surrogate; use black-box attacks",
                )
            largest.append(gradient.flatten(1).abs().amax(1))
        zero = float((torch.cat(largest) == 0).double().mean())
        if zero > NET:
            of = f"the {len(x)} probe samples that are left" if self.after else "the probe"
            return (
                "error",
                f"the gradient is exactly zero for {zero:.0%} of {of}: gradient attacks see nothing",
                "use black-box attacks, a differentiable surrogate, or loss=margin; rescale saturated logits",
            )
        return "pass", f"the gradient is zero for {zero:.0%} of the probe", ""

    def converged(self) -> Verdict:
        if self._settled:
            return self._nothing_left()
        stronger = self._stronger(self.used)
        before = self.probe.broken
        gains = int((self.probe.attack(stronger, among=~before) & ~before).sum())
        losses = self.probe.misses(stronger, before, gains)
        if losses is not None and flagged(gains, losses, len(self.probe)):
            message = f"{stronger.spec} breaks {gains} of {len(self.probe)} probe samples that the run did not"
            return "error", message, "use --suite standard or full, or raise steps and restarts: they still lower the number"
        return "pass", f"twice the steps and restarts break {gains} more of {len(self.probe)} probe samples", ""

    def unbounded(self) -> Verdict:
        if not self.judge.threat.reaches_every_image:
            return "skipped", f"threat {self.judge.threat.name} does not reach every image, whatever its budget", ""
        if self._settled:
            return self._nothing_left()
        most, where = self.judge.threat.unbounded(self.data.shape), self._looked_at
        attack = registry.make("attack", "pgd:steps=40,restarts=2")
        left = int((where & ~self.probe.attack(attack, float_below(most), among=where)).sum())
        if flagged(left, 0, int(where.sum())):
            return (
                "error",
                f"{left} of {int(where.sum())} probe samples survive an unbounded budget, where every image is allowed",
                "the gradients mislead the attack: use black-box attacks or an attack adapted to the defense",
            )
        return "pass", f"{left} of {int(where.sum())} probe samples survive an unbounded budget", ""

    @property
    def _looked_at(self) -> Bools:
        """(P,) the probe's samples that say whether gradient attacks see anything."""
        return self.probe.open if self.after else np.ones(len(self.probe), dtype=bool)

    @property
    def _settled(self) -> bool:
        """Whether so few of them are left that it does not matter."""
        return self.after and int(self.probe.open.sum()) < NET * len(self.probe)

    def _nothing_left(self) -> Verdict:
        return "pass", f"attacks and proofs have left {int(self.probe.open.sum())} of {len(self.probe)} probe samples", ""

    def _stronger(self, used: Sequence[Attack]) -> Attack:
        """The run's cheapest gradient attack that stays within the budget (else its cheapest at all) with twice
        its steps and restarts; PGD-100 x 5 where there is none."""
        iterated = [a for a in used if a.access == "gradient" and {"steps", "restarts"} <= a.__dict__.keys()]
        if iterated:
            attack = min([a for a in iterated if a.bounded] or iterated, key=lambda a: a.cost(self.logits.shape[1]))
            spec, fields = attack.spec, attack.__dict__
            options = dict(spec.options) | {"steps": 2 * fields["steps"], "restarts": 2 * fields["restarts"]}
            return build(type(attack), type(spec)(spec.name, (), {k: _exact(v) for k, v in options.items()}), "attack")
        found = registry.make("attack", "pgd:steps=100,restarts=5")
        assert isinstance(found, Attack)
        return found


def _exact(value: Any) -> Any:
    return Fraction(value) if isinstance(value, int) else value

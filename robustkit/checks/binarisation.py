"""The binarisation test of an attack, Zimmermann et al. 2022, https://arxiv.org/abs/2206.13991.

For a clean image the model's last layer is replaced by a readout that tells random points inside the
ball (class 0, the image among them) from one random point as far out as the budget allows (class 1).
So an adversarial example of the image is known, and an attack that cannot find one says nothing about
the model: where fewer than 95 % of such tasks are solved, its figures for the model are void.

Deliberate deviations: the readout is the regularised linear discriminant, which has a closed form,
instead of logistic regression; its logits are scaled so that the image is as far from the decision
as it was in the model. As in the paper's hardest setting there is one point of class 1; half the
points of class 0 lie as far out as 0.95 of the budget allows, so that length alone tells nothing; and
the threshold lies halfway between the last of them and the point of class 1 (the paper also has 0.999).
The paper's own choices suit features with more values than points: with 100 values, random points
solve most of its tasks, and on mnist-cnn-a-adv sound attacks fail half of them.

A failure can be right about a famous attack: PGD-40 from one start finds 59 % of the known examples
on zoo:mnist-pgd, and breaks 19 of 32 images that one attack or another breaks there. What the last
layer alone hides (small or squeezed logits) is replaced here and so not seen: other checks look for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.attacks.noise import outermost
from robustkit.batch_size import auto_batch
from robustkit.checks.probe import Finding, Probe, Verdict, finding
from robustkit.classifier import Classifier, frozen_copy
from robustkit.errors import BadInput
from robustkit.methods import Attack
from robustkit.numerics import choose, exact_mode
from robustkit.samples import Outcome, Samples
from robustkit.sharing import ALONE, make_driver
from robustkit.threats import Threat
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge

INNER = 999
"""Random points inside the ball, beside the image itself."""

SHARE = 0.95
"""Share of the budget that they may use."""

TRIES = 8
"""Outer points that are tried until one can be told from the inner points."""

TIGHT = 0.5
"""Where the threshold lies between the last inner point (0) and the outer point (1)."""

RIDGE = 1.0
"""Share of the mean variance of the features that is added to every variance."""

RANDOM = 200
"""Random points that are tried on every task for comparison."""

ENOUGH = 16
"""Fewest tasks to judge by."""

PASSES, CHANCE = 0.95, 0.5
"""Least share of the tasks that the attack, and most that random points, may solve."""

Body = Callable[[Tensor], Tensor]
"""Normalised images (R,C,H,W) to features (R,D)."""


@dataclass
class Binarisation:
    """The test of the run's attacks on the probe."""

    probe: Probe
    attacks: Sequence[Attack]

    def run(self) -> Finding:
        """One finding: pass, error (the attacks are too weak), warn (the tasks are too easy) or skipped."""
        return finding("binarisation", self._check)

    def _check(self) -> Verdict:
        attacks, left_out = self._fitting()
        if not attacks:
            raise BadInput(f"no attack of the run works on two classes ({left_out or 'there is none'}): use for example pgd:steps=40")
        if not len(self.probe):
            raise BadInput("no sample is classified correctly")
        if self.probe.judge.classifier.random:
            raise BadInput("the model is random: the test needs features that do not change from draw to draw")
        body, words = features_of(self.probe.judge.classifier, self.probe.images()[:1])
        tasks = solved = by_chance = 0
        for i in range(len(self.probe)):
            task = self._task(i, body)
            if task is not None:
                tasks += 1
                solved += any(self._falls(task, i, attack) for attack in attacks)
                by_chance += self._by_chance(task, i)
        if tasks < ENOUGH:
            raise BadInput(f"only {tasks} binary tasks with a known adversarial example could be made of {words}")
        names = " and ".join(dict.fromkeys(attack.name for attack in attacks))
        message = f"{names} solves {solved} of {tasks} binary tasks with a known adversarial example, random points {by_chance}"
        message += f"; made of {words}" + (f"; left out: {left_out}" if left_out else "")
        if solved < PASSES * tasks:
            cure = "the attack misses what is there, so its figures say little: add restarts or other attacks, or adapt it to the model"
            return "error", message, cure
        if by_chance > CHANCE * tasks:
            return "warn", f"{message}; so easy that it tells nothing", "go by the other checks and by black-box attacks (--suite standard)"
        return "pass", message, ""

    def _fitting(self) -> tuple[list[Attack], str]:
        """The attacks that can work on a task, and in words which others cannot."""
        fit: dict[Attack, None] = {}
        others: dict[str, None] = {}
        for attack in self.attacks:
            try:
                attack.attempts(2)
                if type(attack).prepare is not Attack.prepare:
                    raise BadInput("learns from other images")
                fit[attack] = None
            except BadInput:
                others[str(attack.spec)] = None
        return list(fit), ", ".join(others)

    def _task(self, i: int, body: Body) -> Judge | None:
        """The binary classifier of the i-th probe sample; None where the known example is not one for it."""
        judge, data, at = self.probe.judge, self.probe.data, int(self.probe.at[i])
        classifier, threat = judge.classifier, judge.threat
        x = data.images(torch.tensor([at])).to(classifier.device)
        key = streams.row_keys(self.probe.seed, "binarisation", data.index[at : at + 1]).to(classifier.device)
        keys = streams.child(key.expand(INNER), torch.arange(INNER, device=key.device))
        eps = torch.full((INNER,), self.probe.budget, dtype=torch.float64, device=key.device)
        inner = self._features(body, torch.cat([x, scattered(threat, x, SHARE * eps, keys)]))
        label, none = torch.zeros_like(key), torch.full_like(key, -1)
        for number in range(TRIES):
            outer = outermost(threat, x, eps[:1], streams.child(key, INNER + number))
            readout = discriminant(inner, self._features(body, threat.apply(x, outer))[0], float(self.probe.evidence.clean_margin[at]))
            if readout is not None:
                task = Judge(self._with(body, readout), threat, Goal())
                right, (known, _, _) = task.correct(x, label, task.logits(x)), task.confirm(x, label, none, outer, eps[:1])
                if bool(right & known):
                    return task
        return None

    def _by_chance(self, task: Judge, i: int) -> bool:
        """Whether one of 200 random points is an adversarial example of the i-th probe sample's task."""
        at = torch.from_numpy(self.probe.at[i : i + 1])
        key = streams.row_keys(self.probe.seed, "binarisation by chance", self.probe.data.index[at])
        keys = streams.child(key.expand(RANDOM), torch.arange(RANDOM)).to(task.classifier.device)
        eps = torch.full((RANDOM,), self.probe.budget, dtype=torch.float64, device=keys.device)
        points = scattered(task.threat, self.probe.data.images(at).to(keys.device), eps, keys)
        return bool((task.logits(points).argmax(1) == 1).any())

    def _features(self, body: Body, images: Tensor) -> Tensor:
        """(R,D) features of images."""
        classifier = self.probe.judge.classifier
        rows = auto_batch(self.probe.data.shape, classifier.device)
        with torch.no_grad(), exact_mode():
            return torch.cat([body(classifier.normalise(images[i : i + rows])) for i in range(0, len(images), rows)])

    def _with(self, body: Body, readout: Readout) -> Classifier:
        """The model with another last layer."""
        old = self.probe.judge.classifier
        model = nn.Sequential(body, readout) if isinstance(body, nn.Module) else lambda image: readout(body(image))
        mean, std = (v.flatten().tolist() if old.normalises else None for v in (old.mean, old.std))
        return Classifier(model, mean=mean, std=std, device=old.device)

    def _falls(self, task: Judge, i: int, attack: Attack) -> bool:
        """Whether the attack finds an adversarial example of the i-th probe sample's task."""
        at = torch.from_numpy(self.probe.at[i : i + 1])
        x, label = self.probe.data.images(at), torch.zeros(1, dtype=torch.int64)
        eps = torch.full((1,), self.probe.budget, dtype=torch.float64)
        samples = Samples(self.probe.data.index[at], label, torch.full((1,), -1), task.logits(x).cpu(), eps, lambda where: x[where])
        found: list[Outcome] = []
        options = {"seed": self.probe.seed, "batch_size": self.probe.batch_size, "tick": lambda _: self.probe.tick(0)}
        make_driver(attack, task, sharing=ALONE, **options).run(samples, found.append)
        return bool(Outcome.join(found).success[0])


def scattered(threat: Threat, x: Tensor, eps: Tensor, keys: Tensor) -> Tensor:
    """(R,C,H,W) random points around one image x (1,C,H,W), every other one as far out as eps (R,) allows."""
    many = x.expand(len(keys), *x.shape[1:])
    inside, far = threat.random(many, eps, keys), outermost(threat, many, eps, keys)
    return threat.apply(many, choose(torch.arange(len(keys), device=keys.device) % 2 == 0, inside, far))


class Readout(nn.Module):
    """Two logits of features (R,D): their difference is `weight` times the distance from `origin`, minus `threshold`."""

    def __init__(self, origin: Tensor, weight: Tensor, threshold: Tensor) -> None:
        super().__init__()
        for name, value in {"origin": origin, "weight": weight, "threshold": threshold}.items():
            self.register_buffer(name, value)

    def forward(self, features: Tensor) -> Tensor:
        gap = (features - self.origin) @ self.weight - self.threshold  # type: ignore[operator]
        return torch.stack([-gap / 2, gap / 2], dim=1)


def discriminant(inner: Tensor, outer: Tensor, margin: float) -> Readout | None:
    """The readout that gives class 1 to features `outer` (D,) and class 0 to all of `inner` (N,D).

    The first of `inner` gets the logits' difference -margin. None where no threshold lies between.
    """
    origin, points = inner[0], (inner - inner[0]).double()
    away = (outer - origin).double() - points.mean(0)
    spread = points - points.mean(0)
    count, size = spread.shape
    ridge = RIDGE * count * spread.square().mean() + 1e-30
    if size <= count:
        eye = torch.eye(size, dtype=points.dtype, device=points.device)
        weight = torch.linalg.solve(spread.t() @ spread + ridge * eye, away)
    else:  # the same by a system of the points' number instead of the features'
        eye = torch.eye(count, dtype=points.dtype, device=points.device)
        weight = (away - spread.t() @ torch.linalg.solve(spread @ spread.t() + ridge * eye, spread @ away)) / ridge
    last, far = (points @ weight).max(), (outer - origin).double() @ weight
    threshold = last + TIGHT * (far - last)
    if not bool(torch.isfinite(far)) or not bool((far > last) & (threshold > 0)):
        return None
    scale = margin / threshold
    return Readout(origin, (scale * weight).to(inner.dtype), (scale * threshold).to(inner.dtype))


def features_of(classifier: Classifier, x: Tensor) -> tuple[Body, str]:
    """The model up to its last linear layer, and in words what comes out: the logits where there is no such layer.

    Args:
        x: (1,C,H,W) an image to try it on.
    """
    module = classifier.module
    words = f"the model's {classifier.classes} logits (it has no last linear layer that can be taken off)"
    if not isinstance(module, nn.Module):
        return module, words
    seen: list[tuple[str, Tensor]] = []
    hooks = [
        part.register_forward_hook(lambda _, given, out, name=name: seen.append((name, out)))
        for name, part in module.named_modules()
        if name and isinstance(part, nn.Linear)
    ]
    try:
        with torch.no_grad():
            logits = classifier.forward(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen or not torch.equal(seen[-1][1], logits) or [name for name, _ in seen].count(seen[-1][0]) > 1:
        return module, words
    name = seen[-1][0]
    body = frozen_copy(module)
    parent, _, leaf = name.rpartition(".")
    setattr(body.get_submodule(parent), leaf, nn.Identity())
    try:
        with torch.no_grad():
            features = body(classifier.normalise(x))
            same = features.dim() == 2 and torch.equal(module.get_submodule(name)(features), logits)
    except Exception:  # what comes after the layer does not take its input
        same = False
    return (body, f"the {features.shape[1]} inputs of the model's last linear layer") if same else (module, words)

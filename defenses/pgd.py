"""Adversarial training, Madry et al. 2018, https://arxiv.org/abs/1706.06083.

Deliberate deviations: 7 steps of eps/4 instead of 40 of 0.01, a budget that grows over the first
part of the training, one-cycle Adam, and a small network, so that minutes are enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor, nn
from torch.nn import functional

from robustkit.attacks.pgd import PGD
from robustkit.defenses.inner import Inner
from robustkit.defenses.recipe import Minibatch, Objective, Question, Recipe
from robustkit.defenses.schedules import ramp
from robustkit.errors import unknown
from robustkit.spec import Spec, build, parse
from robustkit.threats import THREATS, Threat


@dataclass(frozen=True)
class AdversarialTraining(Recipe):
    """Minimises the cross-entropy of PGD adversarial examples only.

    Fields: eps, the budget in units of the [0,1] box; threat, its family (`linf`, `l2`, or another
    with its parameters, without eps); steps of the inner PGD; step_size, their length as a share
    of the budget; rise, the share of the training in which the budget grows from 0 to eps.
    """

    eps: Fraction = Fraction(3, 10)
    threat: str = "linf"
    steps: int = 7
    step_size: Fraction = Fraction(1, 4)
    rise: float = 0.3

    name = "pgd"
    positional = ("eps",)
    paper = "Madry et al. 2018"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.eps > 0, "eps", "a budget above 0, for example 0.3 or 8/255")
        self.require(self.steps >= 1, "steps", "a whole number of at least 1")
        self.require(self.step_size > 0, "step_size", "a share of eps above 0, for example 1/4")
        self.require(0 <= self.rise <= 1, "rise", "a share from 0 to 1, for example 0.3")
        family(self.threat, self.eps)

    def question(self, file: str) -> Question:
        return Question(file, str(family(self.threat, self.eps).spec))

    def bind(self, network: nn.Module) -> Objective:
        inner = Inner(PGD(steps=self.steps, step_size=self.step_size), network, family(self.threat, self.eps))

        def loss(batch: Minibatch) -> Tensor:
            worst = inner(batch, ramp(batch.progress, 0.0, self.rise))
            return functional.cross_entropy(network(worst), batch.y)

        return loss


def family(threat: str, eps: Fraction) -> Threat:
    """The threat `threat` names (without its budget) at budget eps; raises BadInput."""
    spec = parse(threat)
    if spec.name not in THREATS:
        raise unknown("threat", spec.name, THREATS)
    return build(THREATS[spec.name], Spec(spec.name, spec.items, {**spec.options, "eps": eps}), "threat")

"""Inner maximisation: the attacks' own init and step over one minibatch, as training wants them.

Every image is attacked, also those that are wrong already, and the point reached is used whether
it fools the model or not; so no Judge takes part and nothing but gradients is computed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.classifier import Classifier
from robustkit.core.comparisons import float_below
from robustkit.defenses.recipe import Minibatch
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows
from robustkit.threats import Threat
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge
from robustkit.views import GradientView, Loss


class TrainingView(GradientView):
    """Gradients of the network in training, seen in eval mode, without keeping any book."""

    def __init__(self, network: nn.Module, threat: Threat) -> None:
        device = next(network.parameters()).device
        super().__init__(Judge(Classifier(network, device=device), threat, Goal()))

    def gradient(
        self, p: Tensor, loss: Loss, through: Callable[[Tensor], Tensor] | None = None, copies: int | None = None
    ) -> tuple[Tensor, Tensor]:
        rows = self.rows

        def objective(image: Tensor) -> Tensor:
            return loss(self.answers(image if through is None else through(image)), rows.y, rows.target)

        return self.threat.gradient(rows.x, p, objective)

    def answers(self, image: Tensor) -> Tensor:
        """Logits (R,K) of the rows' images, differentiable."""
        keys = streams.child(self.rows.key, self.rows.steps) if self.classifier.random else None
        return self.classifier.search(image, keys)


class Inner:
    """Adversarial examples of a network that is being trained.

    Args:
        attack: any attack with gradient access; its first attempt is run to its last step.
        network: the module in training; its weights are shared, its mode and gradients not touched.
        threat: the family; the budget is given call by call.
        view: how the attack sees the network.
    """

    def __init__(self, attack: Attack, network: nn.Module, threat: Threat, view: type[TrainingView] = TrainingView) -> None:
        attack.accepts(threat)
        if attack.access != "gradient":
            raise BadInput(f"attack {attack.name} has {attack.access} access: training needs one with gradients, for example pgd")
        self.attack, self.threat = attack, threat
        self.view = view(network, threat)

    def __call__(self, batch: Minibatch, share: float = 1.0) -> Tensor:
        """(R,C,H,W) images at the attack's last point, within `share` of the threat's budget."""
        eps = torch.full(batch.y.shape, float_below(self.threat.eps) * share, dtype=torch.float64, device=batch.x.device)
        none = torch.full_like(batch.y, -1)
        rows = Rows(
            batch.index,
            torch.zeros_like(none),
            batch.x,
            batch.y,
            none,
            eps,
            batch.key,
            torch.zeros_like(none),
            torch.ones(len(none), device=none.device),
        )
        self.view.rows = rows
        state = self.attack.init(rows, self.view, self.threat)
        for _ in range(self.attack.iterations):
            state = self.attack.step(rows, state, self.view, self.threat)
            rows.steps += 1
        return self.threat.apply(batch.x, state["p"]).detach()

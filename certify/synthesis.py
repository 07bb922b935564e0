"""The lower bound of analysis by synthesis, Schott et al. 2019, https://arxiv.org/abs/1805.09190, section 4.

It holds under the condition that the descent in the latent space found the global minimum for every
class (for the label's class any point will do). Nobody checks that, so the certificates are
`conditional` and never mixed with others.

With E the energies, found at z, and a = |x - G_y(z_y)|, a change of length eps in l2 leaves
E_y at most (a + eps)^2 + |z_y|^2 / 2, and any E_c at least (sqrt(E_c) - eps)^2: for a point z at
distance r and with the cost k = |z|^2 / 2, r^2 + k >= E_c, and so (r - eps)^2 + k is at least that,
whether r is above sqrt(E_c), between eps and that, or below eps.

In l_inf E_c is searched anew with eps of slack a pixel, which gives the smallest energy in the whole
ball, and E_y at most the sum of the worst each pixel can do within the ball and the box.

Deliberate deviation: the paper's bound takes the distance to the nearest reconstruction of c in place
of sqrt(E_c), which is never more.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustkit.errors import BadInput
from robustkit.methods import Bound, Certifier
from robustkit.models.synthesis import Synthesis, synthesis_of
from robustkit.models.synthesising import Synthesising

if TYPE_CHECKING:
    from robustkit.classifier import Classifier
    from robustkit.threats import Threat


@dataclass(frozen=True)
class SynthesisBound(Certifier):
    """The bound of analysis by synthesis, which holds if the descent in the latent space finds every global minimum."""

    name = "abs"
    threats = ("l2", "linf")
    paper = "Schott et al. 2019"
    guarantee = "conditional(every latent optimum is global)"
    cost = 2.0

    def bind(self, classifier: Classifier, threat: Threat) -> Bound:
        """See Certifier. A snapshot of the weights is taken. Raises BadInput for any other model."""
        self.accepts(threat)
        if not isinstance(classifier.module, Synthesising) or classifier.normalises:
            raise BadInput(
                f"the model {classifier.spec} is no analysis by synthesis: abs bounds one, such as zoo:mnist-abs, and nothing else"
            )
        model = synthesis_of(copy.deepcopy(classifier.module))
        models = {torch.float32: model, torch.float64: copy.deepcopy(model).double()}
        norm = _l2 if threat.name == "l2" else _linf

        def bound(x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
            x, y, eps = (value.to(classifier.device) for value in (x, y, eps))
            with torch.no_grad():
                own, others = norm(models[x.dtype], x, y, eps.to(x.dtype))
                logits = model.to_logits(others.scatter(1, y[:, None], own[:, None]))
                return _of(logits, y) - logits.scatter(1, y[:, None], -torch.inf).amax(1)

        return bound


def _l2(model: Synthesis, x: Tensor, y: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Most that the energy of y (R,) can become, least that the energies (R,K) can."""
    z = model.solution(x)
    energies = model.energies(x, z)
    cost = _of(z, y).square().sum(1) / 2
    apart = (_of(energies, y) - cost).clamp(min=0).sqrt()
    return (apart + eps).square() + cost, (energies.clamp(min=0).sqrt() - eps[:, None]).clamp(min=0).square()


def _linf(model: Synthesis, x: Tensor, y: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """As `_l2`."""
    latents = model.solution(x)
    z, made = _of(latents, y), _of(model.decode(latents), y)
    low, high = ((x.flatten(1) + sign * eps[:, None]).clamp(0, 1) for sign in (-1, 1))
    own = torch.maximum((low - made).square(), (high - made).square()).sum(1) + z.square().sum(1) / 2
    return own, model.infer(x, slack=eps)[0]


def _of(values: Tensor, y: Tensor) -> Tensor:
    """(R,...) those of class y among (R,K,...)."""
    return values[torch.arange(len(y), device=y.device), y]

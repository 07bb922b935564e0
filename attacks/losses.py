"""Losses an attack raises: (logits (R,K), y (R,), target (R,)) -> (R,).

A row with target >= 0 aims at that class, others away from y.
DLR: Croce & Hein 2020, https://arxiv.org/abs/2003.01690.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from robustkit.errors import BadInput
from robustkit.views import Loss


def cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the label, or minus that of the target.

    As softplus of the others' log-sum over the own logit: in float32 the usual form loses the own
    logit's part of the gradient where the model is sure, so that steps go astray. In float64, because
    exponentials of float32 have other last bits at the end of a batch than in its middle.
    """
    aimed, z = target >= 0, logits.double()
    held = torch.where(aimed, target, y)[:, None]
    others = z.scatter(1, held, -torch.inf).logsumexp(1)
    found = softplus(others - z.gather(1, held)[:, 0])
    return torch.where(aimed, -found, found).to(logits.dtype)


def margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Best other logit minus the label's; target logit minus the label's for aimed rows."""
    own = logits.gather(1, y[:, None])[:, 0]
    best = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    aimed = logits.gather(1, target.clamp(min=0)[:, None])[:, 0]
    return torch.where(target >= 0, aimed, best) - own


def dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Difference of logits ratio: the margin over the spread of the largest logits, so that it
    does not depend on their scale. Needs 3 classes, 4 for aimed rows."""
    top = logits.topk(min(4, logits.shape[1]), dim=1).values
    spread = top[:, 0] - top[:, 2]
    if logits.shape[1] > 3:
        spread = torch.where(target >= 0, top[:, 0] - (top[:, 2] + top[:, 3]) / 2, spread)
    return margin(logits, y, target) / (spread + 1e-12)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


def check_classes(loss: str, classes: int) -> None:
    """Raises BadInput where DLR is not defined for so few classes."""
    least = {"dlr": 3, "dlr-targeted": 4}.get(loss, 2)
    if classes < least:
        raise BadInput(f"loss {loss} needs at least {least} classes, the model has {classes}: use loss=ce or loss=margin")

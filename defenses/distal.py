"""Distal adversarial examples: images that show nothing, and that a classifier is sure of all the same.

Schott et al. 2019, https://arxiv.org/abs/1805.09190, section 5: from noise, ascend the probability of a
class until it is high. A model that explains images only reaches it with an image of that class. A
study: it ends in figures, never in evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.classifier import Classifier
from robustkit.errors import BadInput
from robustkit.numerics import pad_rows, padded


@dataclass(frozen=True)
class Distal:
    """What became of noise images, one each row."""

    images: Tensor
    """(N,C,H,W) where the ascent ended."""
    classes: Tensor
    """(N,) class whose probability was raised."""
    before: Tensor
    """(N,) highest confidence in the noise itself."""
    after: Tensor
    """(N,) confidence in the class at the end."""
    moved: Tensor
    """(N,) Euclidean length of the way."""

    def __str__(self) -> str:
        sure = [float((v >= 0.9).float().mean()) for v in (self.before, self.after)]
        return (
            f"{len(self.classes)} noise images: mean confidence {self.before.mean():.3f}, {sure[0]:.0%} above 0.9; "
            f"after the ascent {self.after.mean():.3f}, {sure[1]:.0%} above 0.9, {self.moved.mean():.1f} away"
        )


def distal(
    classifier: Classifier, shape: tuple[int, int, int], *, count: int = 32, steps: int = 40, length: float = 0.5, seed: int = 0
) -> Distal:
    """Ascend from uniform noise to every class in turn, by steps of Euclidean `length` along the gradient that
    the model's surface gives.

    The confidence is the model's own where it has one (analysis by synthesis), else the softmax.
    Raises BadInput for counts, steps or lengths that are not above 0, and for random models.
    """
    if min(count, steps) < 1 or not length > 0:
        raise BadInput(f"distal: count, steps and length are above 0, found {count}, {steps} and {length}")
    if classifier.random:
        raise BadInput(f"distal: the model {classifier.spec} is random: name a deterministic one")
    keys = streams.row_keys(seed, "distal", torch.arange(count))
    noise = pad_rows(streams.uniform(keys, shape), padded(count)).to(classifier.device)
    classes = classifier.classes or classifier.logits(noise[:1]).shape[1]
    towards = torch.arange(len(noise), device=noise.device) % classes
    x = noise
    for _ in range(steps):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            logits = classifier.surrogate(leaf) if classifier.surface.surrogate else classifier.forward(leaf)
            raised = logits.log_softmax(1).gather(1, towards[:, None]).sum()
            (gradient,) = torch.autograd.grad(raised, leaf)
        norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp(min=1e-30)
        x = (x + gradient * (length / norm)[:, None, None, None]).clamp(0, 1)
    before, after = (confidence(classifier, v)[:count] for v in (noise, x))
    moved = torch.linalg.vector_norm((x - noise).flatten(1), dim=1)[:count]
    aimed = towards[:count]
    return Distal(x[:count], aimed, before.amax(1), after.gather(1, aimed[:, None])[:, 0], moved)


def confidence(classifier: Classifier, x: Tensor) -> Tensor:
    """(N,K) the model's own confidences where it has them, else the softmax of its logits."""
    own = getattr(classifier.module, "confidence", None) if isinstance(classifier.module, nn.Module) else None
    with torch.no_grad():
        found: Tensor = own(classifier.normalise(x)) if own is not None else classifier.logits(x).softmax(1)
        return found

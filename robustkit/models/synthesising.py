"""A network that is an analysis by synthesis, and what an adversary who knows it may use (models/synthesis.py)."""

from __future__ import annotations

from torch import Tensor, nn

from robustkit.models.synthesis import Synthesis, synthesis_of
from robustkit.surface import Surface


class Synthesising(nn.Sequential):
    """A chain of one Synthesis, which says how it is to be attacked and certified."""

    certifier = "abs"

    def adaptive_surface(self) -> Surface:
        """Gradients are those of the envelope."""
        return Surface(surrogate=synthesis_of(self).envelope)

    def confidence(self, x: Tensor) -> Tensor:
        """(N,K) the paper's scaled softmax of images (N,C,H,W): it tends to 1/K for one that no class explains."""
        return synthesis_of(self).confidence(x)

    def reconstructions(self, x: Tensor) -> Tensor:
        """(N,K,C,H,W) what each class makes of images (N,C,H,W)."""
        model = synthesis_of(self)
        return model.decode(model.solution(x)).view(len(x), -1, *x.shape[1:])

    def warm(self, x: Tensor, z: Tensor | None = None, steps: int = 0) -> tuple[Tensor, Tensor]:
        """Logits (N,K) with the envelope's gradient, and the latents (N,K,L) they are at.

        Args:
            z: latents to go on from by `steps` inner steps; without them, those of the model's own inference.
        """
        model = synthesis_of(self)
        z = model.solution(x.detach()) if z is None else model.infer(x.detach(), z, steps)[1]
        return model.envelope(x, z), z


def synthesising(network: nn.Sequential) -> nn.Sequential:
    """The chain itself, or one that declares its surface where it is an analysis by synthesis; raises ValueError where that is a part."""
    if not any(isinstance(part, Synthesis) for part in network.modules()):
        return network
    if len(network) != 1:
        raise ValueError("abs(...) is a whole network: nothing may stand before or behind it")
    return Synthesising(*network)

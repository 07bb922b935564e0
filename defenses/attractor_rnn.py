"""State-denoised recurrent networks, Mozer et al. 2018, https://arxiv.org/abs/1805.08394: a study, no evidence.

In every time step the hidden state runs through an attractor net, which is trained to take noise
out of the states that the task visits. Replications are independent networks in one leading
dimension R of every weight, so ten cost little more than one; Adam and the sum of losses keep them
apart. Random numbers belong to the replication's own key.

Deliberate deviations: none; the denoising step sees the states of the weights after the task step,
as in the reference code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.errors import BadInput

Arm = Literal["rnn", "rnn+a", "sdrnn", "sdrnn+task"]
"""No attractor net; one trained on the task alone; on denoising alone; on both (the reference's figures)."""
ARMS: tuple[Arm, ...] = ("rnn", "rnn+a", "sdrnn", "sdrnn+task")


@dataclass(frozen=True)
class Settings:
    """Constants of one experiment; the defaults are the paper's for parity."""

    hidden: int = 10
    attractor: int = 20
    steps: int = 15
    noise: float = 0.5
    """Standard deviation of the noise on states that the attractor net learns to take out."""
    lr: float = 0.008
    epochs: int = 5000
    batch: int = 256
    check: int = 100
    """Epochs between two looks at the accuracies; the best on the training set is reported."""
    start: int = 1
    """Epochs before denoising is trained."""

    def __post_init__(self) -> None:
        """Raises BadInput for values no training can use."""
        for field in ("hidden", "attractor", "steps", "epochs", "batch", "check"):
            if getattr(self, field) < 1:
                raise BadInput(f"attractor study: {field} = {getattr(self, field)}: expected a whole number of at least 1")
        if self.noise <= 0 or self.lr <= 0:
            raise BadInput(f"attractor study: noise = {self.noise}, lr = {self.lr}: expected numbers above 0")


class AttractorNet(nn.Module):
    """States before squashing (R,M,H) to cleaned states (R,M,H) in (-1,1).

    a' = tanh(a) W + c with a constant cue c from the state; W is symmetric with a diagonal of at
    least 0, so that the iteration goes to a fixed point or a cycle of two (Koiran 1994). It starts
    next to the identity: without W the result is tanh of the state.
    """

    def __init__(self, keys: Tensor, settings: Settings) -> None:
        super().__init__()
        hidden, inner = settings.hidden, settings.attractor
        self.steps = settings.steps

        def near(number: int, start: Tensor) -> nn.Parameter:
            return nn.Parameter(start + 0.01 * streams.normal(streams.child(keys, number), tuple(start.shape)))

        self.into, self.out = near(1, torch.eye(hidden, inner)), near(2, torch.eye(inner, hidden))
        self.free = near(3, torch.zeros(inner, inner))
        self.bias_in, self.bias_out = near(4, torch.zeros(1, inner)), near(5, torch.zeros(1, hidden))

    @property
    def weight(self) -> Tensor:
        """(R,A,A) the constrained W."""
        low = self.free.tril(-1)
        return low + low.transpose(1, 2) + torch.diag_embed(self.free.diagonal(dim1=1, dim2=2).abs())

    def settle(self, state: Tensor, steps: int) -> Tensor:
        """(R,M,A) the attractor state after `steps` >= 1 steps from zero.

        Computed as 2a, with tanh(a) = 2 sigmoid(2a) - 1: the constants go into weight and cue once,
        and a step is one sigmoid and one product.
        """
        weight = self.weight
        cue = 2 * torch.baddbmm(self.bias_in, state, self.into)
        double, shifted, weight4 = cue, cue - 2 * weight.sum(1, keepdim=True), 4 * weight
        for _ in range(steps - 1):
            double = torch.baddbmm(shifted, torch.sigmoid(double), weight4)
        return double / 2

    def forward(self, state: Tensor) -> Tensor:
        return tanh(torch.baddbmm(self.bias_out, self.settle(state, self.steps), self.out))


class AttractorRNN(nn.Module):
    """R independent tanh networks: sequences (R,N,T,I) to logits (R,N) and states (R,N*T,H) before squashing.

    Args:
        keys: (R,) int64, one key a replication; its weights depend on nothing else.
        inputs: I, values a time step.
        attractor: whether states are cleaned.
    """

    def __init__(self, keys: Tensor, inputs: int, settings: Settings, attractor: bool) -> None:
        super().__init__()
        hidden = settings.hidden
        self.into, self.recurrent, self.out = (
            nn.Parameter(_scaled(streams.child(keys, 10 + number), shape))
            for number, shape in enumerate([(inputs, hidden), (hidden, hidden), (hidden, 1)])
        )
        self.bias = nn.Parameter(0.1 * streams.normal(streams.child(keys, 20), (1, hidden)))
        self.bias_out = nn.Parameter(0.1 * streams.normal(streams.child(keys, 21), (1, 1)))
        self.attractor = AttractorNet(streams.child(keys, 22), settings) if attractor else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        count, length = x.shape[1:3]
        driven = torch.baddbmm(self.bias, x.flatten(1, 2), self.into).view(len(x), count, length, -1)
        clean = torch.zeros(len(x), count, self.bias.shape[2])
        states = []
        for time in range(length):
            states.append(torch.baddbmm(driven[:, :, time], clean, self.recurrent))
            clean = tanh(states[-1]) if self.attractor is None else self.attractor(states[-1])
        return torch.baddbmm(self.bias_out, clean, self.out)[:, :, 0], torch.stack(states, 2).flatten(1, 2)

    def task_weights(self, arm: Arm) -> list[nn.Parameter]:
        """What the task trains in an arm: in `sdrnn` all but the attractor net."""
        return [p for name, p in self.named_parameters() if arm != "sdrnn" or not name.startswith("attractor.")]


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent by way of the logistic function: on CPUs several times as fast as torch's."""
    return 2 * torch.sigmoid(2 * x) - 1


def task_loss(logits: Tensor, y: Tensor) -> Tensor:
    """(R,) squared error of the sigmoid against labels (R,N) in {0,1}, as a share of that of guessing 1/2."""
    return (torch.sigmoid(logits) - y).square().mean(1) / 0.25


def denoising_loss(net: AttractorNet, states: Tensor, noise: Tensor) -> Tensor:
    """(R,) share of the noise that is left: of states (R,M,H) with noise (R,M,H) after cleaning; below 1 helps."""
    target = tanh(states)
    left: Tensor = (net(states + noise) - target).square().mean((1, 2))
    return left / (tanh(states + noise) - target).square().mean((1, 2))


def _scaled(keys: Tensor, shape: tuple[int, int]) -> Tensor:
    """(R,*shape) normal weights, each column scaled to an absolute sum of 2."""
    drawn = streams.normal(keys, shape)
    return 2 * drawn / drawn.abs().sum(1, keepdim=True)

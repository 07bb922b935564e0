"""Training of replicated recurrent networks, task and denoising by turns; see attractor_rnn.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.defenses.attractor_rnn import ARMS, Arm, AttractorRNN, Settings, denoising_loss, task_loss
from robustkit.defenses.sequence_tasks import Sequences
from robustkit.errors import BadInput, unknown


@dataclass(frozen=True)
class Replicated:
    """What came out of all replications, (R,) each."""

    train: Tensor
    """Best accuracy on the training set at a look."""
    tests: dict[str, Tensor]
    """Accuracy on each test set at the latest look with that training accuracy."""
    epochs: Tensor
    """Epochs until the training set was learned, else all."""
    denoising: Tensor
    """Share of the noise on visited states that was left then; nan without an attractor net."""


def replicate(
    task: Callable[[Tensor], Sequences],
    arm: Arm,
    settings: Settings,
    replications: int = 10,
    seed: int = 0,
    tell: Callable[[int, int], None] | None = None,
) -> Replicated:
    """Train `replications` networks of one arm on data of their own, each until it knows its training set.

    Args:
        task: makes the data from (R,) keys; all arms of a seed get the same data and first weights.
        tell: called with (epoch, replications still training) at every look.

    Raises BadInput for an unknown arm.
    """
    if arm not in ARMS:
        raise unknown("arm", str(arm), ARMS)
    if replications < 1:
        raise BadInput(f"replications = {replications}: expected a whole number of at least 1")
    keys = streams.row_keys(seed, "attractor study", torch.arange(replications))
    data = task(streams.child(keys, 0))
    network = AttractorRNN(streams.child(keys, 1), data.x.shape[3], settings, arm != "rnn")
    run = _Run(network, arm, settings, data, keys)
    return run.all(tell)


class _Run:
    """The networks still in training, their optimisers and data, and the record of all."""

    def __init__(self, network: AttractorRNN, arm: Arm, settings: Settings, data: Sequences, keys: Tensor) -> None:
        self.network, self.settings, self.data, self.keys = network, settings, data, keys
        self.task = torch.optim.Adam(network.task_weights(arm), lr=settings.lr)
        denoises = network.attractor is not None and arm != "rnn+a"
        self.denoise = torch.optim.Adam(network.attractor.parameters(), lr=settings.lr) if denoises and network.attractor else None
        self.alive = torch.arange(len(keys))
        count = len(keys)
        blank = [torch.full((count,), torch.nan) for _ in range(1 + len(data.tests))]
        tests = dict(zip(data.tests, blank[1:]))
        self.found = Replicated(torch.full((count,), -1.0), tests, torch.full((count,), settings.epochs), blank[0])

    def all(self, tell: Callable[[int, int], None] | None) -> Replicated:
        for epoch in range(self.settings.epochs + 1):
            if epoch % self.settings.check == 0:
                self.look(epoch)
                if tell is not None:
                    tell(epoch, len(self.alive))
                if not len(self.alive):
                    break
            if epoch < self.settings.epochs:
                for number, (x, y) in enumerate(self.minibatches(epoch)):
                    self.step(x, y, epoch, streams.child(streams.child(self.keys, 100 + epoch), 1 + number))
        return self.found

    def minibatches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Each replication's sequences in an order of its own."""
        count = self.data.x.shape[1]
        if count <= self.settings.batch:
            yield self.data.x, self.data.y
            return
        order = streams.bits(streams.child(streams.child(self.keys, 100 + epoch), 0), count).argsort(1)
        for some in torch.split(order, self.settings.batch, 1):
            rows = torch.arange(len(some))[:, None]
            yield self.data.x[rows, some], self.data.y[rows, some]

    def step(self, x: Tensor, y: Tensor, epoch: int, keys: Tensor) -> None:
        """One step on the task, one on denoising the states that the task now visits."""
        logits, _ = self.network(x)
        self._descend(self.task, task_loss(logits, y))
        if self.denoise is not None and epoch >= self.settings.start:
            self._descend(self.denoise, self.left(x, keys))

    def left(self, x: Tensor, keys: Tensor) -> Tensor:
        """(R,) the denoising loss on the states of sequences."""
        assert self.network.attractor is not None
        with torch.no_grad():
            _, states = self.network(x)
        noise = self.settings.noise * streams.normal(keys, tuple(states.shape[1:]))
        return denoising_loss(self.network.attractor, states, noise)

    def look(self, epoch: int) -> None:
        """Record accuracies where that on the training set is no lower than before, and let go who knows it all."""
        data, alive, found = self.data, self.alive, self.found
        with torch.no_grad():
            train = self.accuracy(data.x, data.y)
            better = train >= found.train[alive]
            where = alive[better]
            found.train[where] = train[better]
            for name, (x, y) in data.tests.items():
                found.tests[name][where] = self.accuracy(x, y)[better]
            if self.network.attractor is not None:
                found.denoising[where] = self.left(data.x, streams.child(self.keys, 2))[better]
        learned = train == 1
        found.epochs[alive[learned]] = epoch
        if bool(learned.any()):
            self.keep(~learned)

    def accuracy(self, x: Tensor, y: Tensor) -> Tensor:
        """(R,) share of the sequences on the right side."""
        logits, _ = self.network(x)
        right: Tensor = (logits > 0) == (y > 0.5)
        return right.float().mean(1)

    def keep(self, rows: Tensor) -> None:
        """Go on with some replications only: weights, optimisers' averages, data."""
        self.alive, self.keys = self.alive[rows], self.keys[rows]
        self.data = self.data.rows(rows)
        for parameter in self.network.parameters():
            parameter.data = parameter.data[rows]
            parameter.grad = None
            for optimizer in filter(None, (self.task, self.denoise)):
                for name, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor) and value.dim():
                        optimizer.state[parameter][name] = value[rows]

    def _descend(self, optimizer: torch.optim.Optimizer, losses: Tensor) -> None:
        weights: list[nn.Parameter] = optimizer.param_groups[0]["params"]
        for weight, gradient in zip(weights, torch.autograd.grad(losses.sum(), weights)):
            weight.grad = gradient
        optimizer.step()

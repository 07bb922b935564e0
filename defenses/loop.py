"""The loop: minibatches in an order that only seed and epoch decide, Adam, progress, checkpoints.

Learning rate and random draws depend on the step only, so a run that was killed and goes on from
its checkpoint ends with the same weights, bit for bit, on the same machine, torch version and
number of threads. No global random generator is changed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from robustkit import streams
from robustkit.data import Data
from robustkit.defenses.augment import shifted
from robustkit.defenses.checkpoint import Checkpoint
from robustkit.defenses.recipe import Minibatch, Objective, Recipe
from robustkit.errors import BadInput
from robustkit.numerics import exact_mode


class Loop:
    """The steps of one training, from the checkpoint or from the beginning."""

    def __init__(self, recipe: Recipe, data: Data, network: nn.Module, seed: int, checkpoint: Checkpoint, save_every: float) -> None:
        self.recipe, self.data, self.network, self.seed = recipe, data, network, seed
        self.checkpoint, self.save_every = checkpoint, save_every
        self.device = next(network.parameters()).device
        self.optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr)
        self.losses = torch.zeros(2, dtype=torch.float64)
        """Sum of the losses of the images of this epoch, and their number."""
        self.per_epoch = batches(len(data), recipe.batch)

    def run(self, steps: int, progress: bool | None) -> int:
        """Do what is left of `steps`; returns how many were done before."""
        objective = self.recipe.bind(self.network)
        done = self.step = self.checkpoint.load(self.network, self.optimizer, self.losses)
        if not done:
            self.save()
        saved = time.monotonic()
        self.network.train()
        hidden = None if progress is None else not progress
        bar = tqdm(total=steps, initial=done, desc=f"train {self.recipe.name}", unit="step", disable=hidden)
        with bar, exact_mode(), self._whole():
            for batch in self.minibatches(steps):
                self.advance(objective, batch)
                if time.monotonic() - saved >= self.save_every:
                    self.save()
                    saved = time.monotonic()
                bar.update()
                bar.set_postfix(epoch=(self.step - 1) // self.per_epoch + 1, loss=f"{self.mean_loss():.4f}", refresh=False)
            self.save()
        self.network.eval()
        return done

    def minibatches(self, steps: int) -> Iterator[Minibatch]:
        """The minibatches from the present step on."""
        while self.step < steps:
            epoch, first = divmod(self.step, self.per_epoch)
            keys = streams.row_keys(self.seed, f"train/{self.recipe.name}", self.data.index, epoch)
            for where in order(self.seed, self.data.index, epoch).tensor_split(self.per_epoch)[first:]:
                parts = self.data.images(where), self.data.y[where], self.data.index[where], keys[where]
                x, y, index, key = (part.to(self.device) for part in parts)
                x = shifted(x, key, self.recipe.shift) if self.recipe.shift else x
                yield Minibatch(x, y, index, key, self.step / max(1, steps - 1))

    def advance(self, objective: Objective, batch: Minibatch) -> None:
        """One step of Adam; raises BadInput when the loss is not finite."""
        if self.step % self.per_epoch == 0:
            self.losses.zero_()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * self.recipe.rate(batch.progress)
        with own_generator(self.device, f"{self.seed}/step/{self.step}"):
            loss = objective(batch)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise self.diverged(f"the loss is {value}")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        self.whole = False
        self.optimizer.step()
        self.losses += torch.tensor([value * len(batch.y), len(batch.y)], dtype=torch.float64)
        self.step += 1
        self.whole = True

    def save(self) -> None:
        """Write the checkpoint; raises BadInput rather than keep weights that are not finite."""
        if not all(bool(torch.isfinite(p).all()) for p in self.network.parameters()):
            raise self.diverged("the weights are not finite")
        self.checkpoint.save(self.step, self.network, self.optimizer, self.losses)

    def mean_loss(self) -> float:
        """Mean loss of the images of this epoch so far."""
        return float(self.losses[0] / self.losses[1].clamp(min=1))

    def diverged(self, what: str) -> BadInput:
        """The error for a training that has run away."""
        lower = f"{self.recipe.lr / 5:.2g}"
        return BadInput(
            f"training ran away at step {self.step}: {what}: lower the learning rate, for example lr={lower}; "
            f"the last good weights are in {self.checkpoint.path}, delete it to train anew"
        )

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """An interrupt saves the state, unless it came in the middle of an update."""
        self.whole = True
        try:
            yield
        except KeyboardInterrupt:
            if self.whole:
                self.save()
            raise


def batches(count: int, batch: int) -> int:
    """Minibatches of an epoch; they are of nearly equal size, at most `batch`."""
    return -(-count // batch)


def order(seed: int, index: Tensor, epoch: int) -> Tensor:
    """(N,) the positions of the dataset indices in the order of an epoch."""
    return torch.argsort(streams.row_keys(seed, "train/order", index, epoch), stable=True)


@contextmanager
def own_generator(device: torch.device, key: str) -> Iterator[None]:
    """Layers that draw from the global generator (dropout) draw from one seeded by `key`; restored after."""
    number = abs(streams.text_key(key))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(number)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield

"""Deep k-nearest neighbours, Papernot & McDaniel 2018, https://arxiv.org/abs/1803.04765.

The class of an image is the one that most of its nearest training images have, at several layers of
a trained network; how well it conforms is compared with training images outside the bank. Named
`knn:(MODEL),reject=0.05`. Attacked through soft votes, after Sitawarin & Wagner 2019 and 2020
(https://arxiv.org/abs/1903.08333, https://arxiv.org/abs/2003.06878).

Deviations: the search is exact, not hashed; ties are broken by how near the nearest image of a class
is, so that p-values are continuous and no answer is left to chance; the bank is class-balanced;
calibration images are of the training split (the authors': the first 750 test images).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from robustkit.classifier import Classifier
from robustkit.data import Data, load_data
from robustkit.defenses.conformal import Calibration
from robustkit.defenses.neighbours import Bank, Layers, Nearest
from robustkit.defenses.provenance import ranges
from robustkit.errors import BadInput
from robustkit.models.around import Around
from robustkit.spec import Spec, canonical, parse
from robustkit.surface import Surface

_ROWS = 256
_EDGE = 0.2
"""Width of the soft neighbourhood's edge, as a share of the usual distance between the first and the last neighbour."""


class NeighbourClassifier(Around):
    """A network whose answer is the vote of the nearest bank images at its layers.

    Logits are logarithms of votes (softmax gives their shares), summed over the layers, plus less than
    half a vote for the nearness of the nearest image of the class. With `reject`, one more logit, the
    last and constant: an input is rejected where no class reaches the threshold on credibility.
    """

    width: Tensor
    reject: Tensor

    def __init__(self, base: Classifier, bank: Data, calibration: Data, layers: Sequence[str], k: int, reject: Fraction) -> None:
        """Build the bank and calibrate. The two sets must not share an image. Raises BadInput."""
        super().__init__(base)
        if base.random or base.surface.rejects or not isinstance(base.module, nn.Module):
            raise BadInput(f"the model {base.spec} is random, rejects or is no nn.Module: name a plain trained network")
        if bank.origin == calibration.origin and bool(torch.isin(bank.index, calibration.index).any()):
            raise BadInput("bank and calibration share images: calibrate on images outside the bank")
        order = bank.y.argsort(stable=True)
        self.images, self.k = bank.subset(order), k
        self.layers = Layers(base.module, layers)
        features = self._all_features(self.images)
        self.bank = Bank(features, self.images.y.to(base.device), bank.classes)
        if not 1 <= k < len(self.bank):
            raise BadInput(f"k is {k}: expected 1 to {len(self.bank) - 1}, fewer neighbours than the bank has images")
        held = self._all_features(calibration)
        found = [self.bank.search(f, i, k) for i, f in enumerate(held)]
        spread = [(n.similarity[:, 0] - n.similarity[:, -1]).mean() for n in found]
        self.register_buffer("width", torch.stack(spread).clamp(min=1e-4))
        self.calibration = Calibration(self._scores(found), calibration.y.to(base.device))
        self.rejects = reject > 0
        self.register_buffer("reject", self.calibration.threshold(reject).log() if reject else self.width.new_zeros(()))

    def adaptive_surface(self) -> Surface:
        """The votes have no gradient: soft votes stand in. With a threshold, it rejects."""
        return Surface(surrogate=self.soft_logits, rejects=self.rejects)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,K), or (N,K+1) where it rejects, without gradient."""
        return self._with_reject(self.scores(x).log())

    def soft_logits(self, x: Tensor) -> Tensor:
        """What stands in for `forward` in attacks: the logarithm of a class's share of the soft votes,
        averaged over the layers, so that each layer where the class has few is pulled most."""
        features = self._features(x)
        soft = [self.bank.soft_votes(f, i, self.k, _EDGE * self.width[i]) for i, f in enumerate(features)]
        return self._with_reject(torch.stack(soft).log_softmax(2).mean(0))

    def scores(self, x: Tensor) -> Tensor:
        """(N,K) votes plus tie-break; the nonconformity of Papernot & McDaniel is layers x k minus this."""
        with torch.no_grad():
            return self._scores(self._search(x))

    def p_values(self, x: Tensor) -> Tensor:
        """(N,K) how large a share of calibration images conforms to its class no better."""
        return self.calibration.p_values(self.scores(x))

    def credibility(self, x: Tensor) -> Tensor:
        """(N,) the highest p-value: uniform on images like the calibration's, low on others."""
        return self.p_values(x).amax(1)

    def confidence(self, x: Tensor) -> Tensor:
        """(N,) one minus the second highest p-value."""
        return 1 - self.p_values(x).topk(2, dim=1).values[:, 1]

    def neighbours(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """layer -> ((N,k) positions in `images`, nearest first, and (N,k) cosines)."""
        with torch.no_grad():
            return {name: (found.at, found.similarity) for name, found in zip(self.layers.names, self._search(x))}

    def _features(self, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = self.layers(self.fed(x))
        return found

    def _all_features(self, data: Data) -> list[Tensor]:
        with torch.no_grad():
            parts = [self._features(data.images(slice(i, i + _ROWS)).to(self.mean.device)) for i in range(0, len(data), _ROWS)]
        return [torch.cat(layer) for layer in zip(*parts)]

    def _search(self, x: Tensor) -> list[Nearest]:
        return [self.bank.search(f, i, self.k) for i, f in enumerate(self._features(x))]

    def _scores(self, found: Sequence[Nearest]) -> Tensor:
        votes = torch.stack([self.bank.votes(n) for n in found]).sum(0)
        near = torch.stack([((n.closest - 1) / w).clamp(max=0).exp() for n, w in zip(found, self.width)]).mean(0)
        return votes + 0.49 * near.clamp(min=1e-30)

    def _with_reject(self, logits: Tensor) -> Tensor:
        return torch.cat([logits, self.reject.to(logits).expand(len(logits), 1)], 1) if self.rejects else logits


@dataclass(frozen=True)
class DeepKNN:
    """Votes of the nearest training images at several layers, with a credibility.

    Fields: data, whose training split gives bank and calibration (default: what the model says it was
    trained on); bank, images to search, the same number of each class; calibration, further images,
    first those that the model does not say it was trained on; k, neighbours a layer (few of many tell
    strangers apart best; the authors take 75 of 60000); layers by module name (default: all activations and the
    output); reject, the share of clean images that may be rejected as not credible (0: none is, and
    there is no logit for it).
    """

    data: Spec | None = None
    bank: int = 10000
    calibration: int = 1000
    k: int = 5
    layers: tuple[str, ...] = ()
    reject: Fraction = Fraction(1, 100)

    name = "knn"
    positional = ()
    paper = "Papernot & McDaniel 2018"
    version = 2

    def __post_init__(self) -> None:
        if min(self.bank, self.calibration, self.k) < 1:
            raise BadInput(f"knn: bank, calibration and k are at least 1, found {self.bank}, {self.calibration} and {self.k}")
        if not 0 <= self.reject < 1:
            raise BadInput(f"knn: reject is a share of clean images, at least 0 and below 1, found {float(self.reject):g}")

    def wrap(self, base: Classifier) -> Classifier:
        """The defended classifier of a trained one; raises BadInput, Missing."""
        named = self.data or base.metadata.get("data")
        if not named:
            raise BadInput(f"knn: the model {base.spec} does not say what it was trained on: name its data, for example data=mnist")
        if self.data is not None and self.data.options.get("split", "train") != "train":
            raise BadInput(f"knn: data = {self.data}: bank and calibration are of the training split: leave split out")
        data = load_data(str(named), split="train")
        base.check(data.images(slice(0, 1)), data.y)
        bank, calibration = self.divide(data, _trained_on(base.metadata, data))
        model = NeighbourClassifier(base, bank, calibration, self.layers, self.k, self.reject)
        told = replace(self, data=parse(str(named)), layers=model.layers.names)
        options = str(canonical(told, self.name)).partition(":")[2]
        seen = torch.cat([bank.index, calibration.index])
        identity = f"{base.sha256}\n{options}\n{self.version}\n{bank.digest}\n{calibration.digest}"
        return Classifier(
            model,
            classes=data.classes + model.rejects,
            input_shape=base.input_shape or data.shape,
            device=base.device,
            spec=f"{self.name}:({base.spec or type(base.original).__name__}),{options}",
            sha256=hashlib.sha256(identity.encode()).hexdigest(),
            metadata=_seen(base.metadata, data, seen),
        )

    def divide(self, data: Data, trained: Tensor) -> tuple[Data, Data]:
        """Bank and calibration, each spread evenly over the split: as many images of every class, and others,
        of those not in `trained` (M,), dataset indices, while there are enough; raises BadInput."""
        share = max(1, self.bank // data.classes)
        chosen = torch.cat([_spread((data.y == k).nonzero()[:, 0], share) for k in range(data.classes)])
        rest = torch.ones(len(data), dtype=torch.bool).index_fill_(0, chosen, False).nonzero()[:, 0]
        seen = torch.isin(data.index[rest], trained)
        fresh = _spread(rest[~seen], self.calibration)
        held = torch.cat([fresh, _spread(rest[seen], self.calibration - len(fresh))])
        if len(chosen) < share * data.classes or len(held) < self.calibration:
            sizes = f"bank = {self.bank} and calibration = {self.calibration}"
            raise BadInput(f"knn: {data.spec} has {len(data)} images, too few for {sizes}: lower them, as in bank=800,calibration=400")
        return data.subset(chosen), data.subset(held)


def _spread(positions: Tensor, count: int) -> Tensor:
    """`count` of the positions, evenly spaced; all where there are fewer."""
    count = min(count, len(positions))
    return positions[torch.arange(count) * len(positions) // max(1, count)]


def _trained_on(metadata: dict[str, str], data: Data) -> Tensor:
    """(M,) int64 indices of the images of `data` that a model says it was trained on."""
    if (metadata.get("data_origin"), metadata.get("data_sha256")) != (data.origin, data.sha256):
        return data.index[:0]
    runs = [run.partition("-") for run in metadata.get("trained_indices", "").split(",") if run]
    return torch.cat([data.index[:0], *(torch.arange(int(first), int(last or first) + 1) for first, _, last in runs)])


def _seen(metadata: dict[str, str], data: Data, index: Tensor) -> dict[str, str]:
    """The metadata of the base model, bank and calibration images counted among those it has seen."""
    told = {"data": data.spec, "data_origin": data.origin, "data_sha256": data.sha256}
    return metadata | told | {"trained_indices": ranges(torch.cat([_trained_on(metadata, data), index]))}

"""Networks whose gradients a saturating function destroys: what attacks without gradients break, each alone.

    python benchmarks/blind_models.py [--n 100] [--eps 0.1,0.2] [--evaluate]

The networks decide as `digits-standard` does: every pair of classes casts a vote, the saturated and amplified
difference of their logits. "later" has two more layers behind the saturation. Prints one table in Markdown:
images left of those that are right, by the attacks on the honest network, by the suite `standard` on this one,
and by each attack that a blind run adds, with the images that it alone breaks. With --evaluate also what
`robustkit.evaluate` says of each network: robust accuracy at most, and whether it is established.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import robustkit as rk
from robustkit import registry
from robustkit.suites import SIGHTLESS, suite

ADDED = tuple(SIGHTLESS)
"""What a blind run adds."""


class Function(nn.Module):
    """A function without weights as a layer."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "softsign":
            return nn.functional.softsign(x)
        if self.name == "rounded":
            return torch.tanh(x).round()
        found: Tensor = getattr(torch, self.name)(x)
        return found


def pairwise(gain: float, function: nn.Module, later: bool = False) -> nn.Sequential:
    """`digits-standard` with votes of pairs of classes in place of its logits."""
    network = rk.load_model("zoo:digits-standard").module
    assert isinstance(network, nn.Sequential)
    pairs = list(itertools.combinations(range(10), 2))
    differences = torch.zeros(len(pairs), 10)
    for row, (one, other) in enumerate(pairs):
        differences[row, one], differences[row, other] = 1, -1
    amplified, votes = nn.Linear(10, len(pairs), bias=False), nn.Linear(len(pairs), 10, bias=False)
    amplified.weight, votes.weight = nn.Parameter(gain * differences), nn.Parameter(differences.t().contiguous())
    if isinstance(function, Function) and function.name == "sigmoid":  # from 0 to 1, not from -1: the other class gets the rest
        votes.bias = nn.Parameter((differences == -1).float().sum(0))
    layers = [*network, amplified, function, votes]
    if later:
        behind = [nn.Linear(10, 10), nn.Linear(10, 10)]
        for layer, shift in zip(behind, (100.0, -100.0)):
            layer.weight, layer.bias = nn.Parameter(torch.eye(10)), nn.Parameter(torch.full((10,), shift))
        layers += [behind[0], nn.ReLU(), behind[1]]
    return nn.Sequential(*layers).eval()


def networks() -> dict[str, nn.Module]:
    """Name -> network."""
    found: dict[str, nn.Module] = {f"tanh x {gain:g}": pairwise(gain, nn.Tanh()) for gain in (1e2, 1e3, 1e4, 1e6)}
    found["hardtanh x 1e3"] = pairwise(1e3, nn.Hardtanh())
    found |= {f"{name} x 1e3": pairwise(1e3, Function(name)) for name in ("sigmoid", "erf", "softsign", "atan", "sign", "rounded")}
    return found | {
        "tanh x 1e3, later": pairwise(1e3, nn.Tanh(), later=True),
        "erf x 1e4, later": pairwise(1e4, Function("erf"), later=True),
    }


def broken(attack: str, model: nn.Module, x: Tensor, y: Tensor, threat: str) -> Tensor:
    """(N,) bool, clean errors included."""
    return torch.as_tensor(registry.make("attack", attack)(model, x, y, threat=threat).success)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--eps", default="0.1,0.2")
    parser.add_argument("--evaluate", action="store_true")
    asked = parser.parse_args()
    data = rk.load_data(f"digits:n={asked.n}")
    x, y = data
    honest = rk.load_model("zoo:digits-standard")
    network = honest.module
    assert isinstance(network, nn.Module)
    names = [attack.partition(":")[0] for attack in ADDED]
    print("| network | eps | honest | standard |" + "".join(f" {name} | alone |" for name in names) + " evaluate |")
    print("|---" * (5 + 2 * len(names)) + "|")
    for name, model in networks().items():
        for eps in asked.eps.split(","):
            threat = f"linf:{eps}"
            attacks = suite("standard", rk.load_threat(threat)).attacks
            right = torch.as_tensor(honest(x).argmax(1) == y)
            truth, own = (torch.stack([broken(str(one), net, x, y, threat) for one in attacks]).any(0) for net in (network, model))
            found = [broken(attack, model, x, y, threat) for attack in ADDED]
            cells = [int((right & ~hit).sum()) for hit in (truth, own)]
            for place, hit in enumerate(found):
                others = torch.stack([own, *(one for other, one in enumerate(found) if other != place)]).any(0)
                cells += [int((right & ~hit).sum()), int((right & hit & ~others).sum())]
            print(
                f"| {name} | {eps} | " + " | ".join(map(str, cells)) + f" | {said(model, data, threat) if asked.evaluate else ''} |",
                flush=True,
            )


def said(model: nn.Module, data: rk.Data, threat: str) -> str:
    """What evaluate says of a network."""
    with tempfile.TemporaryDirectory() as place:
        told = rk.evaluate(model, data, threat, progress=False, report=False, out=Path(place) / "run").summary()
    return f"at most {told['robust_accuracy_at_most']:.3f}" + ("" if told["not_established"] else ", established")


if __name__ == "__main__":
    main()

"""Analysis by synthesis measured: robust accuracy as attacked naively and adaptively, the bound, distal examples.

    python benchmarks/analysis_by_synthesis.py [--model zoo:mnist-abs] [--data mnist] [--threat linf:0.3,l2:1.5] [--n 100] [--square 25]

Prints one line a step as it is done, then a table in Markdown. Naive: FGSM and PGD-20 on the model as
deployed, which has no gradient, and Square with 200 queries, the dearest, on as many of the images that are left
as --square says. Adaptive: PGD-20 through the envelope's gradient as well, ascent with warm latents and
latent descent, each on what is left. The attacks are called one by one: the engine's honesty checks
ask a model thousands of questions, and here each is a descent (about 60 ms on one core).
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

import robustkit as rk
from robustkit import registry
from robustkit.certify import SynthesisBound
from robustkit.classifier import Classifier
from robustkit.data import Data
from robustkit.defenses.distal import distal
from robustkit.evaluation.certify_images import certify_images
from robustkit.models.synthesising import Synthesising

NAIVE = ["fgsm", "pgd:steps=20"]
SQUARE = "square:queries=200"
ADAPTIVE = ["envelope:steps=60", "envelope:steps=60,loss=ce,restarts=2", "pgd:steps=20", "latent-descent"]


def bare(classifier: Classifier) -> Classifier:
    """The same model without what it declares: attacked as deployed."""
    module = classifier.module
    return Classifier(lambda x: module(x), classes=classifier.classes, input_shape=classifier.input_shape)


def attacked(classifier: Classifier, data: Data, threat: str, attacks: list[str], seen: Tensor, most: int = 10**9) -> Tensor:
    """(N,) bool of the samples that stay correct; each attack gets what those before it have left of `seen` (N,) bool, `most` at most."""
    left = seen.clone()
    for spec in attacks:
        at = left.nonzero()[:most, 0]
        if not len(at):
            break
        begun = time.process_time()
        found = registry.make("attack", spec)(classifier, data.x[at], data.y[at], threat=threat, index=data.index[at], pool=data)
        left[at] = ~found.success
        spent = time.process_time() - begun
        print(f"{threat} {spec} on {len(at)}: {int(left.sum())} of {len(left)} left, {spent:.0f} s of CPU", flush=True)
    return left


def main() -> None:
    """Everything, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:mnist-abs")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--threat", default="linf:0.3,l2:1.5")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--square", type=int, default=25, help="images that Square is run on")
    told = parser.parse_args()
    classifier, data = rk.load_model(told.model), rk.load_data(f"{told.data}:n={told.n}")
    right = classifier.logits(data.x).argmax(1) == data.y
    print(f"clean accuracy {float(right.float().mean()):.3f} (n={len(data)})", flush=True)
    if isinstance(classifier.module, Synthesising):
        found = certify_images(SynthesisBound(), classifier, data.x, data.y, threat="l2:1", radius=True)
        proven = found.radius[torch.isfinite(found.radius)]
        print(f"{found.guarantee}: mean l2 radius {proven.mean():.3f}, median {proven.median():.3f} (n={len(proven)})", flush=True)
    print("distal:", distal(classifier, data.shape, count=16), flush=True)
    lines = ["| threat | clean | naive | adaptive |", "|---|---|---|---|"]
    for threat in told.threat.split(","):
        adaptive = attacked(classifier, data, threat, ADAPTIVE, right)
        naive = attacked(bare(classifier), data, threat, NAIVE, right)
        if told.square:
            naive = attacked(classifier, data, threat, [SQUARE], naive, told.square)
            adaptive = attacked(classifier, data, threat, [SQUARE], adaptive & naive, told.square)
        shares = [f"{float(v.float().mean()):.2f}" for v in (right, naive, adaptive & naive)]
        lines.append(f"| {threat} | {' | '.join(shares)} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

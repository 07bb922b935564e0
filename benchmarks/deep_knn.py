"""Deep kNN measured: calibration, detection beside the softmax, and accepted errors under four adversaries.

    python benchmarks/deep_knn.py [--model zoo:mnist-standard] [--data mnist] [--eps 0.1,0.2,0.3] [--n 100]

Prints one table in Markdown. Robust: correct and accepted when clean, and no change found that is
accepted and wrong. Transferred: PGD-40 on the bare network. Naive: the same attacks without the
surrogate, with Square's 200 queries. Adaptive: through the soft votes as well.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from scipy.stats import ks_2samp, kstest, mannwhitneyu
from torch import Tensor

import robustkit as rk
from robustkit import streams
from robustkit.attacks import PGD
from robustkit.data import Data
from robustkit.defenses.deep_knn import NeighbourClassifier

ATTACKS = [
    "pgd:steps=40,loss=margin",
    "apgd:dlr-targeted,steps=40,restarts=1,targets=3",
    "guided-pgd:steps=40,targets=3",
    "square:queries=200",
]


def area(low: Tensor, high: Tensor) -> float:
    """Area under the ROC curve: how often one of `high` is above one of `low`, ties half."""
    return float(mannwhitneyu(high.double().numpy(), low.double().numpy()).statistic) / (len(low) * len(high))


def strangers(x: Tensor) -> dict[str, Tensor]:
    """Images of no class: uniform noise, negatives, quarter turns."""
    noise = streams.uniform(streams.row_keys(0, "strangers", torch.arange(len(x))), tuple(x.shape[1:]))
    return {"noise": noise, "inverted": 1 - x, "turned": x.rot90(1, (2, 3))}


def detection(model: str, data: Data, eps: str) -> None:
    """Uniformity of clean credibility; areas under ROC of credibility and of the softmax."""
    base, x, y = rk.load_model(model), data.x, data.y
    knn = rk.load_model(f"knn:({model}),data={data.name}").module
    assert isinstance(knn, NeighbourClassifier)
    clean = knn.credibility(x)
    print(f"clean accuracy: network {accuracy(base.logits(x), y):.3f}, knn {accuracy(knn.scores(x), y):.3f} (n={len(x)})")
    found = kstest(clean.double().numpy(), "uniform")
    pair = ks_2samp(knn.scores(x).amax(1).numpy(), knn.calibration.highest.numpy())
    print(f"credibility of test images, KS against uniform: D={found.statistic:.3f}, p={found.pvalue:.3g}")
    print(f"highest scores, KS of test against calibration images: D={pair.statistic:.3f}, p={pair.pvalue:.3g}")
    crafted = {f"PGD linf {e}": PGD(steps=40)(base, x, y, threat=f"linf:{e}", stop="never").adversarial for e in eps.split(",")}
    for name, images in (crafted | strangers(x)).items():
        sure, usual = (base.logits(i).softmax(1).amax(1) for i in (images, x))
        print(f"area under ROC, {name}: credibility {area(knn.credibility(images), clean):.3f}, softmax {area(sure, usual):.3f}")


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Share of rows whose highest value is the label's."""
    return float((logits.argmax(1) == y).float().mean())


def robustness(model: str, data: Data, eps: str, out: str) -> None:
    """One row a budget and rejection."""
    base, x, y = rk.load_model(model), data.x, data.y
    print(f"| eps | reject | clean | transferred | naive | adaptive | network itself |\n|{'---|' * 7}")
    for budget in eps.split(","):
        crafted = PGD(steps=40)(base, x, y, threat=f"linf:{budget}", stop="never").adversarial
        for reject in ("0.01", "0.05"):
            knn = rk.load_model(f"knn:({model}),data={data.name},reject={reject}")
            right, given = knn.logits(x).argmax(1) == y, knn.logits(crafted).argmax(1)
            transferred = float((right & ((given == y) | (given == data.classes))).float().mean())
            robust = {}
            for adaptive in ("off", "auto"):
                options: dict[str, Any] = {"attacks": ATTACKS, "certifiers": ["none"], "goal": "accepted-error"}
                options |= {"adaptive": adaptive, "report": False}
                folder = f"{out}/{budget}-{reject}-{adaptive}"
                robust[adaptive] = rk.evaluate(knn, data, f"linf:{budget}", out=folder, **options).summary()["robust_accuracy_at_most"]
            shares = (float(right.float().mean()), transferred, robust["off"], robust["auto"], accuracy(base.logits(crafted), y))
            print(f"| {budget} | {float(reject):.0%} |" + "".join(f" {share:.2f} |" for share in shares), flush=True)


def main() -> None:
    """Both parts, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:mnist-standard")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--eps", default="0.1,0.2,0.3")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--out", default="runs/deep-knn")
    told = parser.parse_args()
    detection(told.model, rk.load_data(f"{told.data}:n={max(told.n, 500)},pick=random"), told.eps)
    robustness(told.model, rk.load_data(f"{told.data}:n={told.n}"), told.eps, told.out)


if __name__ == "__main__":
    main()

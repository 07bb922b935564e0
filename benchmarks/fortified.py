"""What a fortified model's reconstruction error detects, and what is left of that against who knows of it.

    python benchmarks/fortified.py MODEL [--data mnist:n=500] [--threat linf:0.3]

Area under the ROC curve of the score `reconstruction_error`, clean images (all of them) against
images that fool the model. `pgd` only wants to fool it; `selective` raises the cross-entropy until
the model is fooled and then lowers the score as long as it stays fooled (the point of lowest score
is kept; after Bryniarski et al. 2022, 2106.15023). `caught` is the share of the fooling images
above the score that 5 % of the clean images exceed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import options
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from robustkit import Classifier, load_data, load_model, streams
from robustkit.attacks.losses import cross_entropy
from robustkit.core.comparisons import float_below, margins
from robustkit.defenses.fortify import reconstruction_error
from robustkit.errors import RobustkitError
from robustkit.tables import listing
from robustkit.threats import Threat, load_threat


def fooling(model: Classifier, x: Tensor, y: Tensor, threat: Threat, steps: int, selective: bool) -> tuple[Tensor, Tensor]:
    """(N,...) images at the point of lowest score that fools the model (else the last), and (N,) whether it does."""
    eps = torch.full(y.shape, float_below(threat.eps), dtype=torch.float64)
    p = threat.random(x, eps, streams.row_keys(0, "fooling", torch.arange(len(x))))
    best, lowest = threat.apply(x, p), torch.full(y.shape, torch.inf)
    for step in range(steps):

        def objective(image: Tensor) -> Tensor:
            logits = model.forward(image)
            fooled = margins(logits.detach(), y) > 0
            hide = -reconstruction_error(model, image) if selective else torch.zeros(len(y))
            return torch.where(fooled & selective, hide, cross_entropy(logits, y, torch.full_like(y, -1)))

        gradient, _ = threat.gradient(x, p, objective)
        length = eps * (0.1 if step < steps // 2 else 0.02)
        p = threat.project(x, threat.step(x, p, gradient, length), eps)
        image = threat.apply(x, p)
        with torch.no_grad():
            score = reconstruction_error(model, image) if selective else torch.full(y.shape, -float(step))
            better = (margins(model.forward(image), y) > 0) & (score < lowest)
        lowest = torch.where(better, score, lowest)
        best = torch.where((better | lowest.isinf()).view(-1, 1, 1, 1), image, best)
    return best, lowest < torch.inf


def measure(model: Classifier, x: Tensor, y: Tensor, threat: Threat, steps: int) -> list[dict[str, Any]]:
    """One row for each adversary."""
    with torch.no_grad():
        clean, right = reconstruction_error(model, x), margins(model.forward(x), y) < 0
    bar = clean.quantile(0.95)
    rows = []
    for selective in (False, True):
        image, fooled = fooling(model, x[right], y[right], threat, steps, selective)
        with torch.no_grad():
            score = reconstruction_error(model, image[fooled])
        truth = [0] * len(clean) + [1] * len(score)
        some = len(score) > 0
        rows.append(
            {
                "adversary": "selective" if selective else "pgd",
                "fooled": float(fooled.float().mean()),
                "auroc": float(roc_auc_score(truth, torch.cat([clean, score]))) if some else None,
                "caught": float((score > bar).float().mean()) if some else None,
                "clean_score": float(clean.mean()),
                "score": float(score.mean()) if some else None,
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; exit code as robustkit's for bad input or missing data."""
    parser = options.parser("Detection by the reconstruction error of a fortified model.")
    parser.add_argument("model", nargs="?", default="zoo:mnist-fortified")
    parser.add_argument("--data", default="mnist:n=500")
    parser.add_argument("--data-root", help="folder of the data")
    parser.add_argument("--threat", default="linf:0.3")
    parser.add_argument("--steps", type=int, default=200)
    chosen = options.parse(parser, arguments)
    try:
        x, y = load_data(chosen.data, chosen.data_root)
        rows = measure(load_model(chosen.model), x, y, load_threat(chosen.threat), chosen.steps)
    except RobustkitError as problem:
        print(f"fortified: {problem}", file=sys.stderr)
        return problem.exit_code
    if chosen.json:
        print(
            json.dumps({"model": chosen.model, "data": chosen.data, "threat": chosen.threat, "steps": chosen.steps, "rows": rows}, indent=2)
        )
        return 0
    lines = [[r["adversary"], *("-" if r[k] is None else f"{r[k]:.4f}" for k in rows[0] if k != "adversary")] for r in rows]
    listing(f"{chosen.model}, {chosen.data}, {chosen.threat}", lines, list(rows[0]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

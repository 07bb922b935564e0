"""Whether anything contradicts a certificate: exact optimisation on small networks, attacks on all operations.

    python benchmarks/soundness.py [--exact 2000] [--rounds 1] [--samples 64]

Exact: random ReLU networks (dense and convolutional), one image each; every method's largest certified
l_inf radius is searched, and the least margin in that very ball and in one just below is found by mixed-integer
programming (HiGHS), whose encoding shares nothing with the certifiers. Attacked: random networks of every
operation and activation in l_inf, l_2 and l_1; a trial is one image at its largest certified radius, attacked by
PGD on the margin, APGD and random points of the ball. A trial is a violation where an image in the
ball is an error, or has a smaller margin than was proven: of the float32 logits for floating-point
certificates, without tolerance; of float64 logits, up to the rounding of the stated bound, for the others.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import options
import random_networks
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from robustkit import Classifier, registry
from robustkit.attacks import APGD, PGD
from robustkit.methods import Attack, Certifier
from robustkit.samples import Outcome, Samples
from robustkit.sharing import make_driver
from robustkit.tables import listing
from robustkit.threats import Threat, load_threat
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge
from robustkit.verdict.proof import largest_radius

PLAIN = ("ibp", "crown-ibp", "crown", "crown:slope=same", "alpha-crown:steps=3", "alpha-crown:steps=3,intermediate=fixed")
EXACT = ("crown-ibp", "crown")
"""Their certificates are compared with exact optimisation on every network, all others' on every tenth."""

OFTEN = ("ibp", "crown-ibp", "crown", "sound:(ibp)", "sound:(crown-ibp)", "sound:(crown)")
"""Their certificates are attacked on every network, all others', which cost more, on every twelfth."""

METHODS = (*PLAIN, "sound:(ibp)", "sound:(crown-ibp)", "sound:(crown)", "sound:(alpha-crown:steps=3,intermediate=fixed)")
NORMS = ("linf", "l2", "l1")
LARGEST = {"linf": 0.3, "l2": 1.0, "l1": 2.0}
"""Where the search for radii ends."""

DRAWN = 16
"""Random points of the ball in every trial, half of them on its boundary."""

BELOW = 1 - 2.0**-20
"""Just below a radius."""

Floats = NDArray[np.float64]


@dataclass
class Tally:
    """Trials of one method and norm."""

    trials: int = 0
    errors: int = 0
    """Trials with an error inside the certified ball."""
    below: int = 0
    """Trials with a margin below the proven one."""
    unsolved: int = 0
    """Trials with a problem that the solver gave up: only the others of its classes were compared."""
    closest: float = float("inf")
    """Least difference between a margin found and the proven one, relative to 1 + largest |logit|."""
    seconds: float = 0.0


# ---- exact optimisation


def small_network(seed: int) -> tuple[nn.Sequential, tuple[int, ...]]:
    """Two to four layers, dense or convolutional, with ReLU between them."""
    generator = torch.Generator().manual_seed(seed)
    if seed % 4 == 3:
        channels = 1 + seed // 4 % 2
        layers: list[nn.Module] = [nn.Conv2d(channels, 2, 3, 1 + seed // 8 % 2, 1), nn.ReLU(), nn.Flatten()]
        wide = 2 * (16 if seed // 8 % 2 == 0 else 4)
        layers += [nn.Linear(wide, 5), nn.ReLU(), nn.Linear(5, 3)]
        shape = (channels, 4, 4)
    else:
        sizes = [[4, 8, 3], [5, 7, 6, 3], [3, 6, 5, 4, 3]][seed % 4]
        layers = [nn.Flatten()]
        for a, b in zip(sizes, sizes[1:]):
            layers += [nn.Linear(a, b), nn.ReLU()]
        layers, shape = layers[:-1], (1, 1, sizes[0])
    module = nn.Sequential(*layers)
    for parameter in module.parameters():
        fan = parameter[0].numel() if parameter.dim() > 1 else 1
        scale = 1.4 / fan**0.5 if parameter.dim() > 1 else 0.3
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return module.eval(), shape


def matrices(module: nn.Sequential, shape: tuple[int, ...]) -> list[tuple[Floats, Floats]]:
    """(W, b) in float64 of the affine pieces between the ReLUs, read off by feeding unit vectors."""
    found, piece, size = [], nn.Sequential(), shape
    for layer in [*module, nn.ReLU()]:
        if not isinstance(layer, nn.ReLU):
            piece.append(layer)
            continue
        count = int(torch.Size(size).numel())
        with torch.no_grad():
            piece = piece.double()
            bias = piece(torch.zeros(1, *size, dtype=torch.float64))
            rows = piece(torch.eye(count, dtype=torch.float64).view(count, *size)) - bias
        found.append((rows.flatten(1).T.numpy().copy(), bias.flatten().numpy().copy()))
        size, piece = tuple(bias.shape[1:]), nn.Sequential()
    module.float()
    return found


def least_point(layers: list[tuple[Floats, Floats]], low: Floats, high: Floats, c: Floats) -> Floats | None:
    """Where c . logits is least in a box, by an encoding with one binary for every ReLU that intervals leave undecided.

    None where the solver gives up.
    """
    count = len(low) + sum(2 * len(b) for _, b in layers[:-1])  # inputs, activations, binaries
    lows, highs = np.zeros(count), np.ones(count)
    lows[: len(low)], highs[: len(low)] = low, high
    whole = np.zeros(count)
    ties: list[tuple[Floats, float, float]] = []
    before, at, floor, roof = slice(0, len(low)), len(low), low, high
    for weight, bias in layers[:-1]:
        plus, minus = np.maximum(weight, 0), np.minimum(weight, 0)
        least, most = plus @ floor + minus @ roof + bias - 1e-6, plus @ roof + minus @ floor + bias + 1e-6
        for i in range(len(bias)):
            value, binary = at + i, at + len(bias) + i
            lows[value], highs[value] = max(least[i], 0), max(most[i], 0)
            z, a, d = np.zeros(count), np.zeros(count), np.zeros(count)
            z[before], a[value], d[binary] = weight[i], 1, 1
            if most[i] <= 0:
                highs[binary] = 0
            elif least[i] >= 0:
                lows[value], highs[binary] = -np.inf, 0
                ties.append((a - z, bias[i], bias[i]))
            else:
                whole[binary] = 1
                ties.append((a - z, bias[i], np.inf))
                ties.append((a - z - least[i] * d, -np.inf, bias[i] - least[i]))
                ties.append((a - most[i] * d, -np.inf, 0.0))
        before, at = slice(at, at + len(bias)), at + 2 * len(bias)
        floor, roof = np.maximum(least, 0), np.maximum(most, 0)
    objective = np.zeros(count)
    objective[before] = c @ layers[-1][0]
    held = LinearConstraint(*(np.array(column) for column in zip(*ties))) if ties else None
    for presolve in (True, False):  # HiGHS fails on a few problems in one of the two ways
        tuned = {"mip_rel_gap": 0.0, "presolve": presolve}
        found = milp(objective, constraints=held, bounds=Bounds(lows, highs), integrality=whole, options=tuned)
        if found.status == 0:
            break
    else:
        return None
    return np.asarray(np.clip(found.x[: len(low)], low, high))  # the solver's own tolerance is 1e-6: the point counts, not its value


def forward(layers: list[tuple[Floats, Floats]], x: Floats) -> Floats:
    """Logits in float64."""
    for weight, bias in layers[:-1]:
        x = np.maximum(weight @ x + bias, 0)
    return np.asarray(layers[-1][0] @ x + layers[-1][1])


def exact_part(count: int, tallies: dict[tuple[str, str], Tally]) -> None:
    """Every method's certificates of `count` networks against the exact least margins."""
    threat = load_threat("linf:0.1")
    for seed in range(count):
        module, shape = small_network(seed)
        classifier = Classifier(module, input_shape=shape)
        x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed + 10**6))
        logits = classifier.logits64(x)[0]
        y = int(logits.argmax())
        layers, centre = matrices(module, shape), x.flatten().double().numpy()
        for method in METHODS if seed % 10 == 0 else EXACT:
            start = time.process_time()
            radius, margin = certified(registry.make("certifier", method), classifier, threat, x.double(), torch.tensor([y]), rounds=5)
            if not float(radius) > 0:
                continue
            tally = tallies[method, "exact"]
            tally.seconds += time.process_time() - start
            for eps in (float(radius), float(radius) * BELOW)[: 2 if seed % 4 == 0 else 1]:
                low, high = np.maximum(centre - eps, 0), np.minimum(centre + eps, 1)
                rows = [_row(y, j, len(logits)) for j in range(len(logits)) if j != y]
                points = [least_point(layers, low, high, row) for row in rows]
                tally.unsolved += any(point is None for point in points)
                exact = min((float(row @ forward(layers, p)) for row, p in zip(rows, points) if p is not None), default=np.inf)
                gap = (exact - float(margin)) / (1 + float(logits.abs().max()))
                tally.trials += 1
                tally.errors += exact <= 0
                tally.below += gap < -1e-9
                tally.closest = min(tally.closest, gap)


def _row(y: int, j: int, classes: int) -> Floats:
    found = np.zeros(classes)
    found[y], found[j] = 1, -1
    return found


# ---- attacks


def certified(method: Certifier, classifier: Classifier, threat: Threat, x: Tensor, y: Tensor, rounds: int = 3) -> tuple[Tensor, Tensor]:
    """(radius, margin proven there), both (N,) float64; the radius -inf where not even 0 is proven."""
    high = torch.full((len(x),), LARGEST[threat.name], dtype=torch.float64)
    scale = classifier.logits(x.float()).abs().amax(1)
    return largest_radius(method.bind(classifier, threat), x, y, torch.zeros_like(high), high, rounds, scale=scale)


def attacked(attack: Attack, judge: Judge, x: Tensor, y: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) verified hits within each sample's own budget, and (N,C,H,W) the worst images found."""
    count = len(x)
    samples = Samples(torch.arange(count), y, torch.full_like(y, -1), judge.logits(x), eps, lambda at: x[at])
    found: list[Outcome] = []
    make_driver(attack, judge, seed=1, stop="never", batch_size="auto").run(samples, found.append)
    outcome = Outcome.join(found)
    outcome = outcome.pick(outcome.at.argsort())
    return outcome.success, judge.threat.apply(x, outcome.parameters)


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """(N,) float64 label's logit less the best other."""
    logits = logits.double()
    return logits.gather(1, y[:, None])[:, 0] - logits.scatter(1, y[:, None], -torch.inf).amax(1)


def attack_part(rounds: int, count: int, tallies: dict[tuple[str, str], Tally]) -> None:
    """Every method's certificates on networks of all operations, in all norms, against attacks at the certified radius."""
    searches: tuple[Attack, ...] = (PGD(steps=15, restarts=2, loss="margin"), APGD(steps=15, loss="ce"))
    for number, (_, _, module, shape) in enumerate(random_networks.networks(rounds)):
        classifier = Classifier(module, input_shape=shape)
        x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(7))
        x[: count // 4] = x[: count // 4].round()  # corners of the image box
        y = classifier.logits64(x).argmax(1)
        for norm in NORMS:
            threat = load_threat(f"{norm}:0.1")
            judge = Judge(classifier, threat, Goal("untargeted"))
            for name in METHODS if number % 12 == number // 12 % 12 else OFTEN:
                method: Certifier = registry.make("certifier", name)
                if norm not in getattr(method, "method", method).threats:
                    continue
                start = time.process_time()
                radius, margin = certified(method, classifier, threat, x, y)
                tally = tallies[name, norm]
                tally.seconds += time.process_time() - start
                at = (radius > 0).nonzero()[:, 0]
                if len(at):
                    fit = [attack for attack in searches if "*" in attack.threats or norm in attack.threats]
                    _attack(tally, name.startswith("sound"), judge, fit, x[at], y[at], radius[at], margin[at])


def _attack(
    tally: Tally, single: bool, judge: Judge, searches: Sequence[Attack], x: Tensor, y: Tensor, eps: Tensor, proven: Tensor
) -> None:
    classifier, threat = judge.classifier, judge.threat
    scale = 1 + classifier.logits(x).abs().amax(1).double()
    wrong = torch.zeros(len(x), dtype=torch.bool)
    worst = torch.full((len(x),), torch.inf, dtype=torch.float64)
    points = []
    for attack in searches:
        hit, image = attacked(attack, judge, x, y, eps)
        wrong |= hit
        points.append(image)
    key = torch.arange(len(x))
    points += [threat.apply(x, threat.random(x, eps, key + 1000 * n, boundary=bool(n % 2))) for n in range(DRAWN)]
    for image in points:
        found = margins(classifier.logits(image) if single else classifier.logits64(image), y)
        wrong |= found <= 0
        worst = torch.minimum(worst, found)
    gap = (worst - proven) / scale
    tally.trials += len(x)
    tally.errors += int(wrong.sum())
    tally.below += int((gap < (0.0 if single else -1e-4)).sum())
    tally.closest = min(tally.closest, float(gap.min()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both parts; exit code 1 where anything contradicts a certificate."""
    parser = options.parser("Certificates against exact optimisation and attacks.")
    parser.add_argument("--exact", type=int, default=2000, help="networks that are optimised exactly (default 2000)")
    parser.add_argument("--rounds", type=int, default=1, help="times every pair of a family and an activation is attacked (default 1)")
    parser.add_argument("--samples", type=int, default=64, help="images of every attacked network (default 64)")
    chosen = options.parse(parser, arguments)
    tallies: dict[tuple[str, str], Tally] = defaultdict(Tally)
    exact_part(chosen.exact, tallies)
    attack_part(chosen.rounds, chosen.samples, tallies)
    order = {norm: i for i, norm in enumerate(("exact", *NORMS))}
    ordered = sorted(tallies.items(), key=lambda kv: (order[kv[0][1]], METHODS.index(kv[0][0])))
    found = [{"method": method, "against": against, **vars(tally)} for (method, against), tally in ordered]
    violations = sum(tally.errors + tally.below for tally in tallies.values())
    if chosen.json:
        machine: dict[str, Any] = {"platform": platform.platform(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        asked = {"exact": chosen.exact, "rounds": chosen.rounds, "samples": chosen.samples}
        print(json.dumps({"machine": machine, **asked, "cases": found, "violations": violations}, indent=2))
    else:
        heads = ["method", "by", "trials", "errors", "below", "unsolved", "closest", "CPU s"]
        rows = [
            [
                r["method"],
                r["against"],
                *(str(r[key]) for key in ("trials", "errors", "below", "unsolved")),
                f"{r['closest']:.2g}",
                f"{r['seconds']:.0f}",
            ]
            for r in found
        ]
        listing(f"certificates against exact optimisation and attacks: {violations} violations", rows, heads)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())

"""The defenses that docs/RESULTS.md is about: model, threat, what was published of it, and who has broken it.

Published figures are typed here, each with its source; they are about other networks, trained longer.
Nothing here is a measurement of robustkit.
"""

from __future__ import annotations

from dataclasses import dataclass

NEIGHBOUR_ATTACKS = (
    "pgd:steps=40,loss=margin",
    "apgd:dlr-targeted,steps=40,restarts=1,targets=3",
    "guided-pgd:steps=40,targets=3",
    "square:queries=200",
)
"""Against votes of neighbours, through the soft votes that the model declares (Sitawarin & Wagner 2020)."""

RESTARTS = ("pgd:steps=200,restarts=10",)
"""What logit pairing lost to: many steps and many restarts (Mosbach et al. 2018)."""

MOSBACH = "[Mosbach et al. 2018](https://arxiv.org/abs/1810.12042)"
RETOLD = "as retold by [Maini et al. 2020](https://arxiv.org/abs/1909.04068)"
AUTOATTACK = "[AutoAttack's list](https://github.com/fra31/auto-attack)"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    model: str
    threat: str
    paper: str
    """Whose idea it is, as a link."""
    published: str
    """Their figures at this threat, and where they stand."""
    broken: str
    """What is known against it, with its source."""
    claim: float | None = None
    """The robust accuracy that was published for this threat first; None where there is none."""
    n: int = 200
    slow: bool = False
    """More than a millisecond a forward pass: 100 images, the suite `quick` and 200 queries of Square."""
    adaptive: tuple[str, ...] = ()
    """Attacks made for this defense, where `standard` is not already the strongest that is known."""
    unchecked: bool = False
    """So slow that the honesty checks and the test of the attacks would take hours."""
    random: bool = False
    """Its answer is a vote over noise: 100 images, PGD-20 over draws of the noise, certificates by sampling."""
    data: str = "mnist"


ROWS = (
    Row("standard", "zoo:mnist-standard", "linf:0.3", "no defense, a control", "–", "everything breaks it"),
    Row(
        "pgd",
        "zoo:mnist-pgd",
        "linf:0.3",
        "[Madry et al. 2018](https://arxiv.org/abs/1706.06083)",
        "98.5 % clean; 89.6 % after PGD-100 with 50 restarts ([the authors' page](https://github.com/MadryLab/mnist_challenge))",
        f"not broken; 88.5 % left by AutoAttack ({AUTOATTACK})",
        claim=0.8962,
        n=1000,
    ),
    Row(
        "trades",
        "zoo:mnist-trades",
        "linf:0.3",
        "[Zhang et al. 2019](https://arxiv.org/abs/1901.08573)",
        f"99.5 % clean; 95.6 % after PGD-40 (as reported in {AUTOATTACK})",
        f"not broken; 92.8 % left by AutoAttack ({AUTOATTACK})",
        claim=0.956,
        n=500,
    ),
    Row(
        "adversarial logit pairing",
        "zoo:mnist-alp",
        "linf:0.3",
        "[Kannan et al. 2018](https://arxiv.org/abs/1803.06373)",
        f"98.3 % clean; 97.2 % after PGD-40, half clean and half adversarial images ({MOSBACH})",
        f"89.9 % left by many restarts ({MOSBACH}); on ImageNet 0.1 % left ([Engstrom et al. 2018](https://arxiv.org/abs/1807.10272))",
        claim=0.972,
        n=500,
        adaptive=RESTARTS,
    ),
    Row(
        "clean logit pairing",
        "zoo:mnist-clp",
        "linf:0.3",
        "[Kannan et al. 2018](https://arxiv.org/abs/1803.06373)",
        f"98.8 % clean; 62.4 % after PGD-40 ({MOSBACH})",
        f"4.1 % left by many restarts ({MOSBACH})",
        claim=0.624,
    ),
    Row(
        "logit squeezing",
        "zoo:mnist-lsq",
        "linf:0.3",
        "[Kannan et al. 2018](https://arxiv.org/abs/1803.06373)",
        f"98.8 % clean; 70.6 % after PGD-40 ({MOSBACH})",
        f"5.0 % left by many restarts ({MOSBACH})",
        claim=0.706,
    ),
    Row(
        "interval bounds",
        "zoo:mnist-ibp",
        "linf:0.1",
        "[Gowal et al. 2018](https://arxiv.org/abs/1810.12715)",
        "98.9 % clean; 97.1 % certified, 98.0 % after PGD (models that the authors released)",
        "a proof cannot be broken",
        claim=0.9799,
    ),
    Row(
        "interval bounds, 0.3",
        "zoo:mnist-ibp-0.3",
        "linf:0.3",
        "[Gowal et al. 2018](https://arxiv.org/abs/1810.12715)",
        "98.3 % clean; 91.8 % certified, 96.0 % after PGD (models that the authors released, a GPU's budget)",
        "a proof cannot be broken",
        claim=0.9603,
    ),
    Row(
        "CROWN-IBP",
        "zoo:mnist-crown-ibp",
        "linf:0.3",
        "[Zhang et al. 2020](https://arxiv.org/abs/1906.06316)",
        "98.4 % clean; 93.3 % certified, 96.4 % after PGD (models that the authors released)",
        "a proof cannot be broken",
        claim=0.9638,
    ),
    Row(
        "fortified",
        "zoo:mnist-fortified",
        "linf:0.3",
        "[Lamb et al. 2018](https://arxiv.org/abs/1804.02485)",
        "99.0 % clean; 98.9 % after FGSM, one step (the authors' code)",
        "none published",
        claim=0.9894,
    ),
    Row(
        "deep kNN",
        "knn:(zoo:mnist-standard)",
        "linf:0.1",
        "[Papernot & McDaniel 2018](https://arxiv.org/abs/1803.04765)",
        "99.1 % clean; 54.9 % after FGSM at 0.25 (recalled, not checked against the paper), nothing at this budget",
        "minimum-norm attacks through soft neighbourhoods ([Sitawarin & Wagner 2020](https://arxiv.org/abs/2003.06878))",
        slow=True,
        adaptive=NEIGHBOUR_ATTACKS,
    ),
    Row(
        "ABS, l_inf",
        "zoo:mnist-abs",
        "linf:0.3",
        "[Schott et al. 2019](https://arxiv.org/abs/1805.09190)",
        f"99 % clean; 8 % after all of the authors' attacks ({RETOLD})",
        "none published",
        claim=0.08,
        slow=True,
        unchecked=True,
        adaptive=("envelope:steps=60", "latent-descent"),
    ),
    Row(
        "ABS, l2",
        "zoo:mnist-abs",
        "l2:1.5",
        "[Schott et al. 2019](https://arxiv.org/abs/1805.09190)",
        f"99 % clean; 80 % after all of the authors' attacks ({RETOLD})",
        "none published",
        claim=0.8,
        slow=True,
        unchecked=True,
        adaptive=("envelope:steps=60", "latent-descent"),
    ),
    Row(
        "smoothing",
        "smooth:(zoo:mnist-smoothing),sigma=0.5",
        "l2:1",
        "[Cohen et al. 2019](https://arxiv.org/abs/1902.02918)",
        "no MNIST figure in the paper",
        "a proof cannot be broken; it holds with probability 1 - alpha",
        random=True,
    ),
    Row(
        "SmoothAdv",
        "smooth:(zoo:mnist-smoothadv),sigma=0.5",
        "l2:1",
        "[Salman et al. 2019](https://arxiv.org/abs/1906.04584)",
        "no MNIST figure in the paper",
        "a proof cannot be broken; it holds with probability 1 - alpha",
        random=True,
    ),
)

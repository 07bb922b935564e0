"""Basic iterative method, Kurakin et al. 2017, https://arxiv.org/abs/1607.02533: PGD from the clean image."""

from __future__ import annotations

from dataclasses import dataclass

from robustkit.attacks.pgd import PGD


@dataclass(frozen=True)
class BIM(PGD):
    """Iterated fast gradient steps from the clean image; fields as in PGD."""

    steps: int = 10
    random_start: bool = False

    name = "bim"
    paper = "Kurakin et al. 2017"

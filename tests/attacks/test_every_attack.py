"""What holds for every attack: witnesses within the budget, the same result in every batch, exact queries."""

from __future__ import annotations

import pytest
import torch
from small_cases import BUDGETS, images
from torch import nn

from robustkit.attacks import (
    APGD,
    APGDL1,
    BIM,
    DIFGSM,
    FAB,
    FGSM,
    MIFGSM,
    NES,
    PGD,
    ADef,
    FoolboxAttack,
    GuidedPGD,
    LocalVariance,
    RotationSearch,
    SecondOrder,
    Square,
    StAdv,
    Universal,
)
from robustkit.classifier import Classifier
from robustkit.methods import Attack
from robustkit.models import build
from robustkit.threats import load_threat

ATTACKS: list[Attack] = [
    FGSM(),
    BIM(steps=4),
    PGD(steps=5, restarts=2),
    GuidedPGD(steps=4, targets=2, restarts=2),
    MIFGSM(steps=4),
    DIFGSM(steps=4),
    APGD("dlr-targeted", steps=6, restarts=1, targets=2),
    APGDL1("dlr-targeted", steps=6, restarts=2, targets=2),
    FAB(steps=5, targets=2),
    Square(queries=20),
    NES(queries=500),
    FoolboxAttack("pgd", steps=5),
    SecondOrder(steps=4, draws=3),
    LocalVariance(steps=8),
    LocalVariance(steps=4, mode="pgd"),
    Universal(epochs=3),
    RotationSearch(angles=3, shifts=3),
    StAdv(steps=10, optimizer="lbfgs"),
    ADef(steps=5, candidates=2),
]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build("conv(1,6,3,s2,p1)-relu-flatten-linear(96,5)", seed=1).requires_grad_(False)


@pytest.mark.parametrize("family", BUDGETS)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_budget_batches_and_queries(attack: Attack, family: str, network: nn.Module) -> None:
    threat = load_threat(BUDGETS[family])
    if "*" not in attack.threats and family not in attack.threats:
        pytest.skip(f"{attack.name} is not for {family}")
    x = images(40)
    classifier = Classifier(network)
    y = classifier.logits(x).argmax(1)
    before = classifier.forwards
    found = attack(classifier, x, y, threat=threat, batch_size=64)
    assert classifier.forwards - before >= int(found.queries.sum())
    assert bool(found.success.any()), "an untrained network falls to something"
    hit = found.success
    assert bool(threat.contains(x[hit], found.parameters[hit]).all())
    assert torch.equal(threat.apply(x[hit], found.parameters[hit]), found.adversarial[hit])
    assert bool((classifier.logits(found.adversarial[hit]).argmax(1) != y[hit]).all())
    assert torch.equal(found.adversarial[~hit], x[~hit])
    looks_first = isinstance(attack, FAB) and family != "linf"
    a_step = attack.width + 1 if attack.width > 1 else 2 if looks_first else 1
    assert int(found.queries.max()) <= attack.attempts(5) * (a_step * attack.iterations + 1)
    other = attack(classifier, x, y, threat=threat, batch_size=1)
    for name in ("adversarial", "success", "size", "queries", "gradients", "parameters"):
        assert torch.equal(getattr(found, name), getattr(other, name)), name


def test_square_uses_exactly_its_queries_where_it_fails(network: nn.Module) -> None:
    x = images(20)
    y = Classifier(network).logits(x).argmax(1)
    found = Square(queries=37)(network, x, y, threat="linf:0")
    assert not bool(found.success.any())
    assert set(found.queries.tolist()) == {37}

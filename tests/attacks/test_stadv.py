"""stAdv: roughness by hand, descent on known functions, budgets, targets, many rows at once."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from scipy.optimize import minimize, rosen, rosen_der
from torch import Tensor, nn

from robustkit import load_data, load_model, streams
from robustkit.attacks import StAdv, lbfgs
from robustkit.attacks.stadv import roughness
from robustkit.classifier import Classifier
from robustkit.errors import BadInput
from robustkit.models import build


def images(count: int) -> Tensor:
    return streams.uniform(streams.row_keys(0, "images", torch.arange(count)), (1, 8, 8))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build("conv(1,6,3,s2,p1)-relu-flatten-linear(96,5)", seed=1).requires_grad_(False)


@pytest.mark.parametrize("neighbours", ["axial", "diagonal"])
def test_roughness_sums_over_every_pixels_neighbours(neighbours: str) -> None:
    flow = torch.randn(2, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    ways = [(0, 1), (0, -1), (1, 0), (-1, 0)] if neighbours == "axial" else list(itertools.product((-1, 1), (-1, 1)))
    expected = torch.zeros(2)
    for i, j, (a, b) in itertools.product(range(4), range(5), ways):
        if 0 <= i + a < 4 and 0 <= j + b < 5:
            expected += (flow[:, :, i, j] - flow[:, :, i + a, j + b]).norm(dim=1)
    found, slope = roughness(flow, neighbours)  # type: ignore[arg-type]
    assert torch.allclose(found, expected, rtol=1e-4)
    way = torch.randn(flow.shape, generator=torch.Generator().manual_seed(1))
    ahead, behind = (roughness(flow.double() + sign * 1e-6 * way, neighbours)[0] for sign in (1, -1))  # type: ignore[arg-type]
    assert torch.allclose((slope * way).flatten(1).sum(1).double(), (ahead - behind) / 2e-6, rtol=1e-3)
    assert float(roughness(torch.full((1, 2, 4, 5), 3.0), neighbours)[0]) < 0.01  # type: ignore[arg-type]


def descend(start: Tensor, function: object, steps: int, history: int = 10) -> dict[str, Tensor]:
    """Batched L-BFGS on (values, gradients) = function(points)."""
    state = lbfgs.begin(start, history)
    for _ in range(steps):
        value, slope = function(state["p"])  # type: ignore[operator]
        state = lbfgs.advance(state, value, slope, lambda d: d.norm(dim=1), 1.0)
    return state


def valley(points: Tensor) -> tuple[Tensor, Tensor]:
    values = torch.tensor([rosen(p.numpy()) for p in points], dtype=torch.float64)
    return values, torch.stack([torch.from_numpy(rosen_der(p.numpy())) for p in points])


def test_lbfgs_finds_the_minimum_of_rosenbrocks_valley() -> None:
    starts = torch.tensor([[-1.2, 1.0, 0.5], [2.0, -1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    state = descend(starts, valley, 120)
    assert torch.allclose(state["base"], torch.ones(3, 3, dtype=torch.float64), atol=1e-4)
    evaluations = minimize(rosen, starts[0].numpy(), jac=rosen_der, method="L-BFGS-B").nfev
    assert float(descend(starts, valley, 3 * evaluations)["value"][0]) < 1e-6  # not many more than scipy's own needs


def test_lbfgs_rows_are_on_their_own() -> None:
    starts = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = descend(starts, valley, 30)
    alone = [descend(starts[i : i + 1], valley, 30) for i in range(5)]
    for name in ("p", "value", "direction", "steps_made"):
        assert torch.allclose(together[name], torch.cat([one[name] for one in alone]), rtol=1e-9), name


def test_lbfgs_goes_on_with_another_function_after_a_restart() -> None:
    state = descend(torch.zeros(2, 3, dtype=torch.float64), valley, 60)
    state = lbfgs.restart(state, torch.tensor([True, False]))
    assert state["value"].tolist()[0] == torch.inf and float(state["value"][1]) < 1e-3
    assert not bool(state["changes"][0].any()) and bool(state["changes"][1].any())
    assert torch.equal(state["p"][0], state["base"][0])


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_flows_stay_within_the_budget_and_are_found(optimizer: str, network: nn.Module) -> None:
    x, classifier = images(40), Classifier(network)
    y = classifier.logits(x).argmax(1)
    attack = StAdv(steps=60, optimizer=optimizer)  # type: ignore[arg-type]
    small, large = (attack(classifier, x, y, threat=f"flow:{eps}") for eps in ("0.2", "1"))
    assert 0 < int(small.success.sum()) < int(large.success.sum())
    assert bool((small.size[small.success] <= 0.2).all())
    assert bool((classifier.logits(large.adversarial).argmax(1) != y)[large.success].all())
    failed = ~large.success
    assert bool((large.queries[failed] <= 61).all())
    assert torch.equal(large.queries, large.gradients + 1)
    part = attack(classifier, x[20:], y[20:], threat="flow:1", index=torch.arange(20, 40), batch_size=16)
    assert torch.equal(part.parameters, large.parameters[20:])


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_a_larger_tau_gives_a_smoother_flow(optimizer: str) -> None:
    classifier, (x, y) = load_model("zoo:digits-standard"), load_data("digits:n=32")
    rough = []
    for tau in (0.0, 0.3):
        attack = StAdv(steps=100, tau=tau, optimizer=optimizer, patience=0, rate=0.1)  # type: ignore[arg-type]
        found = attack(classifier, x, y, threat="flow:11")
        rough.append((found.success, roughness(found.parameters)[0]))
    both = rough[0][0] & rough[1][0]
    assert int(both.sum()) >= 8
    assert float(rough[1][1][both].mean()) < 0.8 * float(rough[0][1][both].mean())


def test_patience_eases_tau_where_it_keeps_the_attack_from_succeeding() -> None:
    classifier, (x, y) = load_model("zoo:digits-standard"), load_data("digits:n=32")
    held, eased = (StAdv(steps=150, tau=2.0, patience=patience)(classifier, x, y, threat="flow:11") for patience in (0, 5))
    assert int(held.success.sum()) < int(eased.success.sum())
    assert bool(eased.success[eased.size > 0].all())


def test_mnist_as_in_the_paper(shared_data: Path) -> None:
    model, (x, y) = load_model("zoo:mnist-standard"), load_data("mnist:n=32", shared_data)
    found = StAdv()(model, x, y, threat="flow:40", goal="targeted:random")
    right = found.size > 0
    assert bool(found.success[right].all())
    assert torch.equal(model.logits(found.adversarial).argmax(1) != y, torch.ones_like(right))
    assert float(found.size[right].mean()) < 2


@pytest.mark.parametrize(
    "fields", [{"steps": 0}, {"tau": -1.0}, {"patience": -1}, {"rate": 0.0}, {"optimizer": "sgd"}, {"neighbours": "all"}, {"history": 0}]
)
def test_bad_fields_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="stadv"):
        StAdv(**fields)  # type: ignore[arg-type]

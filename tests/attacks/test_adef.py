"""ADef: its parts against formulas, one step against the linear solution, exact counts, many rows at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from robustkit import load_data, load_model, streams
from robustkit.attacks import ADef
from robustkit.attacks.adef import slopes, smooth
from robustkit.classifier import Classifier
from robustkit.errors import BadInput
from robustkit.methods import Rows
from robustkit.models import build
from robustkit.threats import Flow
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge
from robustkit.views import GradientView


def images(count: int, side: int = 8) -> Tensor:
    return streams.uniform(streams.row_keys(0, "images", torch.arange(count)), (1, side, side))


def opened(classifier: Classifier, x: Tensor, y: Tensor, goal: str = "untargeted") -> tuple[GradientView, Rows]:
    count = len(x)
    numbers = torch.zeros(count, dtype=torch.int64)
    target = Goal(goal).targets(y, torch.arange(count), int(classifier.logits(x[:1]).shape[1]), 0)
    rows = Rows(
        torch.arange(count), numbers, x, y, target, torch.full((count,), 20.0, dtype=torch.float64), numbers, numbers, torch.ones(count)
    )
    view = GradientView(Judge(classifier, Flow(20), Goal(goal)), bounded=False)
    view.rows, view.book = rows, view.open(rows)
    return view, rows


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build("conv(1,6,3,s2,p1)-relu-flatten-linear(96,5)", seed=1).requires_grad_(False)


# ---- parts


def test_slopes_are_central_differences() -> None:
    i, j = torch.arange(5.0)[:, None], torch.arange(6.0)
    plane = (0.3 * i - 0.2 * j)[None, None]
    assert torch.allclose(slopes(plane)[:, 0], torch.full_like(plane, 0.3), atol=1e-6)
    assert torch.allclose(slopes(plane)[:, 1], torch.full_like(plane, -0.2), atol=1e-6)
    down, right = torch.gradient(images(3), dim=(2, 3))
    assert torch.allclose(slopes(images(3)), torch.stack([down, right], 1), atol=1e-6)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_smoothing_is_scipys_and_its_own_adjoint(sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 2, 9, 7, generator=generator), torch.randn(2, 3, 2, 9, 7, generator=generator)
    expected = ndimage.gaussian_filter(a[1, 2, 0].double().numpy(), sigma, mode="constant", truncate=4)
    assert smooth(a, sigma)[1, 2, 0].numpy() == pytest.approx(expected, abs=1e-5)
    assert float((smooth(a, sigma) * b).sum()) == pytest.approx(float((a * smooth(b, sigma)).sum()), rel=1e-3, abs=1e-3)
    assert torch.equal(smooth(a, 0), a)


@pytest.mark.parametrize("vectorised", [True, False])
def test_the_jacobian_is_that_of_autograd_and_counted(vectorised: bool, network: nn.Module) -> None:
    class Looping(torch.autograd.Function):
        """The identity, which refuses a vectorised backward."""

        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, *gradients: Tensor) -> Tensor:
            float(gradients[0].sum())
            return gradients[0]

    def model(x: Tensor) -> Tensor:
        found: Tensor = network(x if vectorised else Looping.apply(x))  # type: ignore[no-untyped-call]
        return found

    x = images(6)
    classifier = Classifier(network if vectorised else model)
    view, _ = opened(classifier, x, network(x).argmax(1))  # no adversarial example, so that the Judge asks nothing
    before = (classifier.forwards, classifier.backwards)
    found, values = view.jacobian(torch.zeros(6, 2, 8, 8), lambda logits, y, target: logits[:, 1:4] - logits[:, :1])
    assert (classifier.forwards - before[0], classifier.backwards - before[1]) == (6, 18)
    assert view.book["queries"].tolist() == [1] * 6
    assert view.book["gradients"].tolist() == [3] * 6
    every = torch.stack([torch.autograd.functional.jacobian(lambda one: network(one[None])[0], x[i]) for i in range(6)])
    assert torch.allclose(found, every[:, 1:4] - every[:, :1], atol=1e-5)
    logits = network(x)
    assert torch.allclose(values, logits[:, 1:4] - logits[:, :1], atol=1e-6)


# ---- the attack


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0])
def test_a_step_closes_the_linearised_gap_of_the_nearest_class(sigma: float) -> None:
    """On smooth images and a linear model: the field is c x phi phi alpha, and the lead it gains to first order is the gap."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(100, 4))
    x = functional.interpolate(images(16, 4), (10, 10), mode="bilinear", align_corners=True)
    classifier = Classifier(network.requires_grad_(False))
    logits = classifier.logits(x)
    y = logits.argmax(1)
    view, rows = opened(classifier, x, y)
    attack = ADef(sigma=sigma, overshoot=1)
    state = attack.init(rows, view, Flow(20))
    field = attack.step(rows, state, view, Flow(20))["p"]
    weight = network[1].weight.view(4, 1, 10, 10)
    lengths = []
    for k in range(4):
        alpha = ((weight[k] - weight[y])[:, None] * slopes(x)).sum(2)  # gain of class k over the label by moving every pixel
        once = smooth(alpha, sigma)
        share = (logits.gather(1, y[:, None])[:, 0] - logits[:, k]) / once.square().flatten(1).sum(1).clamp(min=1e-20)
        expected = smooth(once, sigma) * share.view(-1, 1, 1, 1)
        lengths.append(torch.where(y == k, torch.inf, expected.square().sum(1).flatten(1).amax(1).sqrt()))
        mine = (field - expected).flatten(1).abs().amax(1) < 1e-3 * expected.flatten(1).abs().amax(1)
        if k == 0:
            matches = mine & (y != 0)
        else:
            matches |= mine & (y != k)
    assert bool(matches.all())
    length = field.square().sum(1).flatten(1).amax(1).sqrt()
    assert torch.allclose(length, torch.stack(lengths).amin(0), rtol=1e-3)


def test_a_single_edge_is_moved_as_far_as_it_has_to() -> None:
    """A ramp and a model that reads one pixel: the exact answer is known."""
    ramp = (torch.arange(12.0) / 11).expand(1, 1, 12, 12).contiguous()

    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0, 6, 5], torch.full((len(x),), 7.5 / 11)], 1) * torch.tensor([-1.0, -1.0])

    classifier = Classifier(Reads())
    assert classifier.logits(ramp).argmax(1).tolist() == [0]  # 5/11 is below 7.5/11
    found = ADef(sigma=0)(classifier, ramp, torch.zeros(1, dtype=torch.int64), threat="flow:5")
    assert found.success.tolist() == [True]
    assert float(found.size) == pytest.approx(2.5, rel=0.03)  # this pixel looks 2.5 pixels to the right, and a little over
    assert float(found.parameters[0, 1, 6, 5]) == pytest.approx(float(found.size), rel=1e-5)
    assert int((found.parameters != 0).sum()) == 1
    assert not bool(ADef(sigma=0)(classifier, ramp, torch.zeros(1, dtype=torch.int64), threat="flow:2.4").success)


def test_queries_and_gradients_are_exact(network: nn.Module) -> None:
    x, classifier = images(16), Classifier(network)
    y = classifier.logits(x).argmax(1)
    found = ADef(steps=1, candidates=3)(classifier, x, y, threat="flow:0")
    assert set(found.queries.tolist()) == {2}  # the step's own, and the confirmation
    assert set(found.gradients.tolist()) == {3}
    found = ADef(steps=1)(classifier, x, y, threat="flow:0")
    assert set(found.gradients.tolist()) == {4}  # no more candidates than other classes


def test_targets_are_met_with_one_gradient_a_step() -> None:
    classifier, (x, y) = load_model("zoo:digits-standard"), load_data("digits:n=48")
    found = ADef()(classifier, x, y, threat="flow:11", goal="targeted:next")
    assert float(found.success.float().mean()) > 0.7
    assert torch.equal(classifier.logits(found.adversarial).argmax(1)[found.success], ((y + 1) % 10)[found.success])
    assert bool((found.gradients <= found.queries).all())


def test_mnist_as_in_the_paper(shared_data: Path) -> None:
    """The paper's MNIST: all images, 1.2 to 1.5 pixels on average."""
    model, (x, y) = load_model("zoo:mnist-standard"), load_data("mnist:n=48", shared_data)
    found = ADef()(model, x, y, threat="flow:40")
    right = found.size > 0
    assert bool(found.success[right].all())
    assert float(found.size[right].mean()) < 2


@pytest.mark.parametrize("fields", [{"steps": 0}, {"candidates": 0}, {"sigma": -1.0}, {"overshoot": 0.5}])
def test_bad_fields_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="adef"):
        ADef(**fields)  # type: ignore[arg-type]

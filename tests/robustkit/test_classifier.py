"""The classifier: the user's module stays as it was, normalisation is inside, every mistake is one line."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks.pgd import PGD
from robustkit.classifier import Classifier, as_classifier, pick_device
from robustkit.errors import BadInput, Missing
from robustkit.threats import Linf


def network() -> nn.Sequential:
    """Batch norm and dropout, in train mode, with weight gradients on, and a gradient already there."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(108, 4))
        made(torch.rand(8, 1, 8, 8)).sum().backward()
    return made.train()


def images(count: int = 20, channels: int = 1) -> Tensor:
    return torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(1))


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Everything a user could find changed."""
    return {
        "state": copy.deepcopy(module.state_dict()),
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "flags": [p.requires_grad for p in module.parameters()],
        "modes": [m.training for m in module.modules()],
        "identity": [id(p) for p in module.parameters()],
        "versions": [p._version for p in [*module.parameters(), *module.buffers()]],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()],
        "rng": torch.get_rng_state(),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# ---- the user's module


def test_the_module_is_left_exactly_as_it_was() -> None:
    module = network()
    before = snapshot(module)
    model = Classifier(module)
    x = images()
    model.check(x, torch.zeros(20, dtype=torch.int64))
    y = model.logits(x).argmax(1)
    model.logits64(x)
    PGD(steps=3)(model, x, y, threat=Linf("0.1"))
    PGD(steps=3)(module, x, y, threat=Linf("0.1"), stop="never")
    after = snapshot(module)
    assert {key for key in before if not same(before[key], after[key])} == set()


def test_logits_are_those_of_eval_mode() -> None:
    module = network()
    x = images()
    model = Classifier(module)
    assert model.was_training
    expected = copy.deepcopy(module).eval()(x)
    assert torch.equal(model.logits(x), expected)
    assert torch.equal(model(x), model.logits(x))
    assert not Classifier(module.eval()).was_training
    assert not Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))).was_training  # nothing in it depends on the mode


def test_no_weight_gradient_is_ever_computed() -> None:
    module = network()
    module.zero_grad()
    model = Classifier(module)
    x = images().requires_grad_()
    assert isinstance(model.module, nn.Module)
    assert not any(p.requires_grad for p in model.module.parameters())
    torch.autograd.backward(model.forward(x).sum())
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is None for p in module.parameters())
    assert not model.logits(x).requires_grad


def test_later_training_is_seen_also_in_float64() -> None:
    module = network()
    model, x = Classifier(module), images()
    model.logits64(x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    expected = copy.deepcopy(module).eval()
    assert torch.equal(model.logits(x), expected(x))
    assert torch.allclose(model.logits64(x), expected.double()(x.double()))


def test_float64_logits_are_finer_than_float32() -> None:
    model, x = Classifier(network(), mean=[0.3], std=[0.7]), images()
    found = model.logits64(x)
    assert found.dtype == torch.float64
    assert torch.allclose(found.float(), model.logits(x), atol=1e-5)
    assert not torch.equal(found, model.logits(x).double())


def test_a_model_that_insists_on_float32_still_answers() -> None:
    class Stubborn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise TypeError("float32 only")
            return x.flatten(1)[:, :3]

    x = images()
    assert torch.equal(Classifier(Stubborn()).logits64(x), x.flatten(1)[:, :3].double())
    assert torch.equal(Classifier(lambda x: x.flatten(1)[:, :3]).logits64(x), x.flatten(1)[:, :3].double())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm],
    ids=["weight-norm", "spectral-norm", "weight-norm-parametrized", "spectral-norm-parametrized"],
)
def test_normalised_weights_are_understood(wrap: Callable[[nn.Module], nn.Module]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), wrap(nn.Linear(64, 4)))
        module(images())
    model = Classifier(module)
    assert torch.allclose(model.logits(images()), copy_by_state(module, wrap)(images()))
    assert model.logits64(images()).dtype == torch.float64


def copy_by_state(module: nn.Module, wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        other = nn.Sequential(nn.Flatten(), wrap(nn.Linear(64, 4)))
    other.load_state_dict(module.state_dict())
    return other.eval()


def test_tied_weights_stay_tied() -> None:
    linear = nn.Linear(64, 64)
    model = Classifier(nn.Sequential(nn.Flatten(), linear, nn.ReLU(), linear))
    assert model.parameters == 64 * 64 + 64


def test_a_model_that_works_in_place_does_not_spoil_the_images() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            x -= 0.5
            x *= 2
            logits: Tensor = self.last(x.flatten(1))
            return logits

    module, x = InPlace(), images(32)
    kept = x.clone()
    model = Classifier(module)
    model.check(x)
    expected = module.last((x - 0.5).mul(2).flatten(1))
    assert torch.allclose(model.logits(x), expected)
    assert torch.allclose(model.logits(x), expected)
    result = PGD(steps=3)(module, x, expected.argmax(1), threat=Linf("0.3"))
    assert torch.equal(x, kept)
    assert bool(result.success.any())
    assert not model.logits(result.adversarial).argmax(1)[result.success].eq(expected.argmax(1)[result.success]).any()


# ---- normalisation


def test_normalisation_is_inside() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    x = images(5, channels=3)
    mean, std = [0.1, 0.5, 0.9], [0.5, 0.25, 2.0]
    model = Classifier(module, mean=mean, std=std)
    scaled = (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    assert torch.allclose(model.logits(x), module(scaled))
    assert torch.allclose(Classifier(module, mean=[0.5]).logits(x), module(x - 0.5))
    assert torch.allclose(Classifier(module, std=[0.5]).logits(x), module(x * 2))
    fed = Classifier(module).normalise(x)
    assert torch.equal(fed, x) and fed.data_ptr() != x.data_ptr()  # a tensor into which the model may write
    model.check(x)


@pytest.mark.parametrize(
    "options",
    [
        {"std": [0.0]},
        {"std": [-1.0]},
        {"std": [math.nan]},
        {"mean": [math.inf]},
        {"mean": ["x"]},
        {"mean": 0.5},
        {"mean": []},
        {"std": [[1.0]]},
    ],
    ids=str,
)
def test_bad_normalisation_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="mean|std"):
        Classifier(network(), **options)


@pytest.mark.parametrize("options", [{"mean": [0.1, 0.2, 0.3]}, {"std": [0.1, 0.2, 0.3]}], ids=str)
def test_normalisation_for_other_channels_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="channels"):
        Classifier(network(), **options).check(images())


# ---- counters


def test_rows_are_counted() -> None:
    model = Classifier(network())
    model.logits(images(7))
    model.forward(images(5))
    assert (model.forwards, model.backwards) == (12, 0)


# ---- checks


class Returns(nn.Module):
    def __init__(self, what: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Any:
        return self.what(x)


def _raise(problem: Exception) -> Callable[[Tensor], Any]:
    def forward(x: Tensor) -> Any:
        raise problem

    return forward


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (lambda x: x, "expected logits of shape"),
        (lambda x: x.flatten(1)[:, 0], "expected logits of shape"),
        (lambda x: x.flatten(1)[:, :1], "at least 2 classes"),
        (lambda x: x.flatten(1)[:1].mean(1, keepdim=True).T.expand(1, 10)[:0], "expected logits of shape"),
        (lambda x: (x, x), "fails on images"),
        (lambda x: None, "fails on images"),
        (_raise(KeyError("k")), "fails on images"),
        (_raise(AssertionError()), "AssertionError"),
        (_raise(ZeroDivisionError()), "ZeroDivisionError"),
        (_raise(RuntimeError("first line\nsecond line")), "first line: check"),
    ],
)
def test_models_that_return_something_else_are_refused(what: Callable[[Tensor], Any], says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        Classifier(Returns(what), spec="mine").check(images())
    assert "\n" not in str(caught.value)


def test_wrong_images_and_labels_are_refused() -> None:
    with pytest.raises(BadInput, match="fails on images of shape"):
        Classifier(network()).check(images(channels=3))
    with pytest.raises(BadInput, match="takes images of shape"):
        Classifier(network(), input_shape=(3, 32, 32)).check(images())
    with pytest.raises(BadInput, match="returned 4 logits, expected 10"):
        Classifier(network(), classes=10).check(images())
    with pytest.raises(BadInput, match=r"labels reach 4, .* classes 0\.\.3"):
        Classifier(network()).check(images(), torch.arange(5))
    model = Classifier(network())
    model.check(images(), torch.tensor([0, 3]))
    assert model.classes == 4


def test_what_cannot_be_copied_is_named() -> None:
    module = network()
    module.held = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(BadInput, match="cannot be copied"):
        Classifier(module)
    with pytest.raises(BadInput, match="cannot be copied"):
        Classifier(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)))


def test_what_is_no_model_is_refused() -> None:
    model = Classifier(network())
    assert as_classifier(model) is model
    assert isinstance(as_classifier(lambda x: x), Classifier)
    with pytest.raises(BadInput, match="str is no model"):
        as_classifier("zoo:x")


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type in ("cpu", "cuda")
    for name in ("gpu", "cuda:x", "meta", ""):
        with pytest.raises(BadInput, match="device"):
            pick_device(name)
    with pytest.raises(Missing, match="--device cpu"):
        pick_device("cuda:99")


def test_the_representation_names_the_model() -> None:
    assert "Sequential" in repr(Classifier(network()))
    assert "zoo:x" in repr(Classifier(network(), spec="zoo:x", classes=4))

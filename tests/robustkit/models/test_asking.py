"""Models that look at how they are asked are found, sound ones are left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.certify.crown import Crown
from robustkit.classifier import Classifier
from robustkit.engine import certify, evaluate
from robustkit.errors import BadInput
from robustkit.models.asking import Asking, objection, refuse


def images(count: int = 24) -> Tensor:
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))


class Also(nn.Module):
    """A small network whose answer something is done with."""

    def __init__(self, after: Callable[[Any, Tensor, Tensor], Tensor] = lambda m, x, z: z, network: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
        self.network, self.after, self.calls = plain if network is None else network, after, 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self, x, self.network(x))


def _other(z: Tensor, when: bool) -> Tensor:
    return z.roll(1, 1) if when else z


def _every(number: int) -> Callable[[Any, Tensor, Tensor], Tensor]:
    def after(model: Any, x: Tensor, z: Tensor) -> Tensor:
        model.calls += 1
        return _other(z, model.calls % number == 0)

    return after


DEPENDENT: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "gradient mode": lambda m, x, z: _other(z, torch.is_grad_enabled()),
    "gradient wanted": lambda m, x, z: _other(z, x.requires_grad),
    "inference mode": lambda m, x, z: _other(z, torch.is_inference_mode_enabled()),
    "float64": lambda m, x, z: _other(z, x.dtype == torch.float64),
    "one row": lambda m, x, z: _other(z, len(x) == 1),
    "many rows": lambda m, x, z: _other(z, len(x) > 20),
    "few rows, other logits only": lambda m, x, z: z * (1.0 if len(x) > 1 else 0.1),
    "softmax over the batch": lambda m, x, z: z.softmax(0),
    "batch mean": lambda m, x, z: z - z.mean(0),
    "first row": lambda m, x, z: z + z[:1],
    "third call": _every(3),
    "later calls": _every(10**9),
}


@pytest.mark.parametrize("after", DEPENDENT.values(), ids=DEPENDENT.keys())
def test_how_it_is_asked_is_seen(after: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
    assert objection(Classifier(Also(after)), images())


def _positions(m: Any, x: Tensor, z: Tensor) -> Tensor:
    m.__dict__.setdefault("cached", {}).setdefault(z.shape[1], torch.arange(z.shape[1]))
    return z + 0.1 * m.cached[z.shape[1]]


SOUND: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "plain": lambda m, x, z: z,
    "masked": lambda m, x, z: z.masked_fill(torch.arange(5) == 3, -torch.inf),
    "masked by a number": lambda m, x, z: z.masked_fill(torch.arange(5) == 3, -1e9),
    "tiny": lambda m, x, z: z * 1e-6,
    "shifted": lambda m, x, z: z + 1000,
    "cache": _positions,
    "scribbles": lambda m, x, z: z + 0 * x.zero_().sum(),
    "softmax": lambda m, x, z: z.softmax(1),
    "rounded by an offset": lambda m, x, z: (z + 2.0**17) - 2.0**17,
}


@pytest.mark.parametrize("after", SOUND.values(), ids=SOUND.keys())
def test_sound_models_are_left_alone(after: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
    classifier = Classifier(Also(after))
    assert objection(classifier, images()) == ""
    assert classifier.logits(images()[:3]).shape == (3, 5)  # and can be asked further


class Attends(nn.Module):
    """A layer that takes another way through its code without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x[:, 0]).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "network",
    [
        Attends(),
        nn.Sequential(nn.Flatten(), nn.LayerNorm(36), nn.Linear(36, 5)),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 5)),
        nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 5)),
        nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.Tanh(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sound_layers_are_left_alone(network: nn.Module, dtype: torch.dtype) -> None:
    model = Also(network=network.to(dtype))
    assert objection(Classifier(lambda x: model(x.to(dtype)).float()), images()) == ""
    assert dtype == torch.float64 or objection(Classifier(model), images()) == ""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_alone(dtype: torch.dtype) -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Also().to(dtype)

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x.to(dtype))  # type: ignore[no-any-return]

    assert objection(Classifier(Cast().eval()), images()) == ""


def test_the_batch_sizes_are_named() -> None:
    classifier = Classifier(Also(lambda m, x, z: z - z.mean(0)))
    status, message = Asking(classifier, images()).batch(48, images(48), single=24)
    assert status == "error" and "48" in message and "16" in message
    status, message = Asking(Classifier(Also(lambda m, x, z: _other(z, len(x) == 1))), images()).batch(48, images(48), single=8)
    assert status == "error" and "8 of 8 images" in message and "in a batch of 1," in message
    assert Asking(Classifier(Also()), images()).batch(48, images(48), single=24)[0] == "pass"


def test_a_model_that_takes_no_single_row_is_a_warning() -> None:
    classifier = Classifier(Also(lambda m, x, z: z.squeeze()))
    assert Asking(classifier, images()).batch(48, images(48), single=4)[0] == "warn"


def test_drawing_is_seen_even_where_it_changes_nothing() -> None:
    torch.manual_seed(0)
    assert "differ" in Asking(Classifier(Also(lambda m, x, z: z + torch.randn(5))), images()).repeats()
    assert "draws" in Asking(Classifier(Also(lambda m, x, z: z + 0 * torch.randn(5))), images()).repeats()


def test_an_empty_message_is_no_crash() -> None:
    def after(m: Any, x: Tensor, z: Tensor) -> Tensor:
        if len(x) == 1:
            raise ValueError
        return z

    assert "ValueError" in Asking(Classifier(Also(after)), images()).batch(48, images(48), single=4)[1]


def test_certifiers_refuse_them(tmp_path: Any) -> None:
    x, y = images(20), torch.arange(20) % 5
    counts = Also(_every(10**9))
    with pytest.raises(BadInput, match="calls"):
        certify(counts, (x, y), "linf:0.01", method="crown", out=tmp_path / "a", report=False, progress=False)
    with pytest.raises(BadInput, match="calls"):
        Crown()(counts, x, y, threat="linf:0.01")
    with pytest.raises(BadInput, match="training mode.*BatchNorm2d"):
        refuse(Classifier(Also().train()), x)
    with pytest.raises(BadInput, match="BatchNorm2d"):
        certify(Also().train(), (x, y), "linf:0.01", method="crown", out=tmp_path / "b", report=False, progress=False)
    found = evaluate(counts, (x, y), "linf:0.01", suite="quick", out=tmp_path / "c", report=False, progress=False).summary()
    assert found["certified_accuracy"] == 0.0 and found["robust_accuracy"] is None


class SetsModes(nn.Module):
    """A forward that sets its network to training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Also()

    def forward(self, x: Tensor) -> Tensor:
        self.inner.train()
        return self.inner(x)  # type: ignore[no-any-return]


def test_a_forward_that_sets_modes_is_held_in_eval_mode_and_not_certified(tmp_path: Any) -> None:
    x, y = images(20), torch.arange(20) % 5
    classifier = Classifier(SetsModes().eval())
    classifier.check(x)
    assert classifier.switched == ["inner.network.1: BatchNorm2d"]
    assert torch.equal(classifier.logits(x), Classifier(Also()).logits(x))
    with pytest.raises(BadInput, match="a forward sets inner.network.1: BatchNorm2d to training mode"):
        certify(SetsModes().eval(), (x, y), "linf:0.01", method="crown", out=tmp_path / "a", report=False, progress=False)

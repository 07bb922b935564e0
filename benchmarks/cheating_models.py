"""Models that hide adversarial examples, each around one honest network whose robust accuracy is known.

A cheat changes no true decision of the network it hides (or has a `twin` of its own that it is measured by), so a robust
accuracy above the twin's is wrong wherever it is established. The sound models at the end hide nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit import load_model

Forward = Callable[[nn.Module, Tensor], Tensor]
Make = Callable[[nn.Module, Tensor], nn.Module]
"""A model from the honest network and the test images (N,C,H,W)."""

NEAR = 0.15
"""How far from a test image, in l_inf, a model that knows the test images answers as it does on them."""


@dataclass(frozen=True)
class Cheat:
    """One way to hide."""

    kind: str
    name: str
    make: Make
    twin: Make | None = None
    """The honest model with the same true decisions, where it is not the honest network itself."""


class Around(nn.Module):
    """A function of a network and the images."""

    def __init__(self, net: nn.Module, answer: Forward) -> None:
        super().__init__()
        self.net, self.answer = net, answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.net, x)


def around(answer: Forward) -> Make:
    """A model that keeps no state of its own."""
    return lambda net, images: Around(net, answer).eval()


class Normalise(nn.Module):
    """What a bundled model's file says of mean and deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def bundled(name: str) -> nn.Sequential:
    """A bundled network for the digits as a module that takes images in [0,1]."""
    found = load_model(f"zoo:{name}")
    assert isinstance(found.module, nn.Sequential)
    return nn.Sequential(Normalise(found.mean, found.std), *found.module).eval()


# ---- saturation


def voting(gain: float, squash: Callable[[], nn.Module], later: bool = False) -> Make:
    """Every pair of classes casts a vote, the saturated difference of their logits; with `later`, two more layers follow."""

    def make(net: nn.Module, images: Tensor) -> nn.Module:
        pairs = list(itertools.combinations(range(10), 2))
        signs = torch.zeros(len(pairs), 10)
        for row, (one, other) in enumerate(pairs):
            signs[row, one], signs[row, other] = 1, -1
        first, votes = nn.Linear(10, len(pairs), bias=False), nn.Linear(len(pairs), 10)
        first.weight, votes.weight = nn.Parameter(gain * signs), nn.Parameter(signs.t().contiguous())
        votes.bias = nn.Parameter(torch.full((10,), 10.0))
        last = nn.Linear(10, 10, bias=False)
        last.weight = nn.Parameter(torch.eye(10))
        assert isinstance(net, nn.Sequential)
        return nn.Sequential(*net, first, squash(), votes, *([nn.ReLU(), last] if later else [])).eval()

    return make


# ---- knowing the test images


class Known(nn.Module):
    """Logits of the nearest of the `images` it knows where that is near, of the network elsewhere; a trace of the network's remains."""

    images: Tensor

    def __init__(self, net: nn.Module, images: Tensor, trace: float = 1e-3) -> None:
        super().__init__()
        self.net, self.trace = net, trace
        self.register_buffer("images", images.clone())

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            apart = (x.to(self.images.dtype).flatten(1)[:, None] - self.images.flatten(1)[None]).abs().amax(2)
            nearest, place = apart.min(1)
            remembered = self.net(self.images)[place].to(x.dtype)
        logits: Tensor = self.net(x)
        return torch.where((nearest <= NEAR)[:, None], remembered + self.trace * logits, logits)


class Switching(nn.Module):
    """Hardened by knowing the test images where `hides` says so, the honest network otherwise."""

    def __init__(self, net: nn.Module, images: Tensor, hides: Callable[[Switching, Tensor], bool]) -> None:
        super().__init__()
        self.net, self.known, self.hides = net, Known(net, images), hides
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        found: Tensor = self.known(x) if self.hides(self, x) else self.net(x)
        return found


def switching(hides: Callable[[Switching, Tensor], bool]) -> Make:
    return lambda net, images: Switching(net, images, hides).eval()


# ---- modes, batches, state


class Mode(nn.Module):
    """Dropout whose mode is not that of the model; `always` sets it in every forward."""

    def __init__(self, net: nn.Module, always: bool) -> None:
        super().__init__()
        self.drop, self.net, self.always = nn.Dropout(0.4), net, always

    def forward(self, x: Tensor) -> Tensor:
        if self.always:
            self.drop.train()
        found: Tensor = self.net(self.drop(x))
        return found


def left_training(net: nn.Module, images: Tensor) -> nn.Module:
    model = Mode(net, always=False).eval()
    model.drop.train()
    return model


class RunningMean(nn.Module):
    """Takes off a mean of the images seen so far, which every forward moves."""

    mean: Tensor

    def __init__(self, net: nn.Module, shape: torch.Size) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * x.mean(0).to(self.mean))
        found: Tensor = self.net(x - 0.5 * self.mean.to(x))
        return found


class Memo(nn.Module):
    """Answers an image near one that it has been asked about before as it did then."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        answers = []
        for image, answer in zip(x.detach().float(), logits):
            old = next((then for known, then in self.seen if float((image - known).abs().max()) <= NEAR), None)
            if old is None and len(self.seen) < 200:
                self.seen.append((image.clone(), answer.detach().clone()))
            answers.append(answer if old is None else old.to(answer) + 1e-3 * answer)
        return torch.stack(answers)


def _batch_normalised(net: nn.Module, x: Tensor) -> Tensor:
    return F.batch_norm(net(x), None, None, training=True) if len(x) > 1 else torch.as_tensor(net(x))


# ---- gradients


class Killed(torch.autograd.Function):
    """No gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


class Flipped(torch.autograd.Function):
    """The gradient turned round."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return -gradient


class NoBackward(torch.autograd.Function):
    """Whose author forgot the backward."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()


def _apply(function: type[torch.autograd.Function]) -> Forward:
    return lambda net, x: net(function.apply(x))  # type: ignore[no-untyped-call]


def _no_grad(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(net(x))


def _inference(net: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.as_tensor(net(x))


def _through_numpy(net: nn.Module, x: Tensor) -> Tensor:
    return torch.as_tensor(net(torch.from_numpy(x.detach().cpu().numpy().copy()).to(x)))


# ---- rounding, masks


def _scaled(net: nn.Module, x: Tensor, by: float = 1, offset: float = 0) -> Tensor:
    return torch.as_tensor(net(x)) * by + offset


def _big(power: int, gain: float) -> Forward:
    return lambda net, x: (gain * net(x) + 2.0**power) - 2.0**power


def _masked(value: float) -> Forward:
    return lambda net, x: F.pad(net(x), (0, 5), value=value)


def _other_with_gradients(net: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = net(x)
    return logits.flip(1) if torch.is_grad_enabled() else logits


def _clamp_in_place(net: nn.Module, x: Tensor) -> Tensor:
    return torch.as_tensor(net(x.clamp_(max=0.9)))


def _write_in_place(net: nn.Module, x: Tensor) -> Tensor:
    x[x > 0.9] = 0.9
    return torch.as_tensor(net(x))


def _no_float64(net: nn.Module, x: Tensor) -> Tensor:
    """Small in float32, and in float64 right about nothing: what float64 says excuses no hit."""
    logits: Tensor = net(x.float())
    return (logits * 1e-6).to(x.dtype) if x.dtype != torch.float64 else torch.zeros_like(logits, dtype=torch.float64)


def _label_in_float64(net: nn.Module, images: Tensor) -> nn.Module:
    return Switching(net, images, lambda model, x: x.dtype == torch.float64).eval()


_clamped = around(lambda net, x: net(x.clamp(max=0.9)))

CHEATS: tuple[Cheat, ...] = (
    *(Cheat("scale", f"logits x {by:g}", around(partial(_scaled, by=by))) for by in (1e-6, 1e-20, 1e-30, 1e6, 1e30)),
    Cheat("scale", "softmax", around(lambda net, x: net(x).softmax(1))),
    Cheat("scale", "softmax of 100 x", around(lambda net, x: (100 * net(x)).softmax(1))),
    *(Cheat("offset", f"logits + {by:g}", around(partial(_scaled, offset=by))) for by in (1e4, 1e6, -1e6)),
    Cheat("offset", "x 1e-6, then + 1", around(lambda net, x: net(x) * 1e-6 + 1)),
    Cheat("offset", "own offset for each image", around(lambda net, x: net(x) + 1e5 * x.mean((1, 2, 3))[:, None])),
    *(Cheat("masking", f"five classes at {by:g}", around(_masked(by))) for by in (-1e4, -1e9, torch.finfo(torch.float32).min, -torch.inf)),
    *(Cheat("saturation", f"tanh of pairs, gain {by:g}", voting(by, nn.Tanh)) for by in (10, 100, 1e4)),
    *(Cheat("saturation", f"sigmoid of pairs, gain {by:g}", voting(by, nn.Sigmoid)) for by in (30, 1e3)),
    *(Cheat("saturation", f"hard clipping of pairs, gain {by:g}", voting(by, nn.Hardtanh)) for by in (10, 1e3)),
    Cheat("saturation", "softsign of pairs, gain 1e6", voting(1e6, nn.Softsign)),
    Cheat("saturation", "tanh of pairs, one layer earlier", voting(100, nn.Tanh, later=True)),
    Cheat("saturation", "hard clipping of pairs, one layer earlier", voting(1e3, nn.Hardtanh, later=True)),
    Cheat("rounding", "+ 2^27 - 2^27", around(_big(27, 64))),
    Cheat("rounding", "+ 2^30 - 2^30", around(_big(30, 512))),
    Cheat("rounding", "quarters", around(lambda net, x: (net(x) * 4).round() / 4)),
    Cheat("rounding", "half precision", around(lambda net, x: net(x).half())),
    Cheat("rounding", "bfloat16", around(lambda net, x: net(x).bfloat16())),
    Cheat("rounding", "bfloat16, x 1e-6", around(lambda net, x: (net(x) * 1e-6).bfloat16())),
    Cheat("batch", "softmax over the batch", around(lambda net, x: net(x).softmax(0))),
    Cheat("batch", "batch mean of images", around(lambda net, x: net(x - x.mean(0, keepdim=True) + 0.3))),
    Cheat("batch", "batch mean of logits", around(lambda net, x: net(x) - net(x).mean(0, keepdim=True))),
    Cheat("batch", "batch statistics", around(_batch_normalised)),
    Cheat("batch", "batch size decides", switching(lambda model, x: len(x) > 1)),
    Cheat("batch", "a batch of one is answered otherwise", around(lambda net, x: net(x) if len(x) > 1 else -net(x))),
    Cheat("mode", "dropout left in training mode", left_training),
    Cheat("mode", "forward sets the mode", lambda net, images: Mode(net, always=True).eval()),
    Cheat("mode", "draws in eval mode", around(lambda net, x: net(x + 0.1 * torch.randn_like(x)))),
    Cheat("state", "running mean", lambda net, images: RunningMean(net, images.shape[1:]).eval()),
    Cheat("state", "memo of images seen", lambda net, images: Memo(net).eval()),
    Cheat("calls", "honest at first", switching(lambda model, x: model.calls > 3)),
    Cheat("calls", "every second call", switching(lambda model, x: model.calls % 2 == 0)),
    Cheat("calls", "hides late", switching(lambda model, x: model.calls > 40)),
    Cheat("gradient mode", "hides where gradients are on", switching(lambda model, x: torch.is_grad_enabled())),
    Cheat("gradient mode", "hides where gradients are off", switching(lambda model, x: not torch.is_grad_enabled())),
    Cheat("gradient mode", "hides where the input wants none", switching(lambda model, x: not x.requires_grad)),
    Cheat("gradient mode", "hides outside inference mode", switching(lambda model, x: not torch.is_inference_mode_enabled())),
    Cheat(
        "gradient mode", "other answers with gradients", around(lambda net, x: net(x) if not torch.is_grad_enabled() else net(x).flip(1))
    ),
    Cheat("dtype", "hides in float64", _label_in_float64),
    Cheat("dtype", "small, and no answer in float64", around(_no_float64)),
    Cheat("in place", "clamp_ of the input", around(_clamp_in_place), _clamped),
    Cheat("in place", "writes into the input", around(_write_in_place), _clamped),
    Cheat("no gradient", "detach", around(lambda net, x: net(x.detach()))),
    Cheat("no gradient", "Function without backward", around(_apply(NoBackward))),
    Cheat("no gradient", "backward of zeros", around(_apply(Killed))),
    Cheat("no gradient", "backward turned round", around(_apply(Flipped))),
    Cheat("no gradient", "no_grad inside", around(_no_grad)),
    Cheat("no gradient", "inference_mode inside", around(_inference)),
    Cheat("no gradient", "through numpy", around(_through_numpy)),
    Cheat("no gradient", "one-hot of the decision", around(lambda net, x: F.one_hot(net(x).argmax(1), 10).float())),
    Cheat("no gradient", "NaN in the gradient", around(lambda net, x: net(x) - (x - x).flatten(1).norm(dim=1, keepdim=True))),
    Cheat("known images", "behind zero gradients", lambda net, images: Known(net, images, trace=0).eval()),
)
"""`known images` is no lie about these images, only about others: it has to be refused for its gradients."""


# ---- sound models


def small_vit() -> nn.Module:
    """A transformer of two layers on patches of 2 x 2, untrained."""

    class ViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.place = nn.Conv2d(1, 32, 2, 2), nn.Parameter(0.1 * torch.randn(1, 16, 32))
            layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
            self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patches(x).flatten(2).transpose(1, 2) + self.place
            found: Tensor = self.head(self.body(tokens).mean(1))
            return found

    return ViT()


def batch_normed() -> nn.Module:
    """Two convolutions with batch normalisation."""
    front = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*front, nn.Flatten(), nn.Linear(256, 10))


def weight_normed() -> nn.Module:
    """A dense network with both forms of weight normalisation, and dropout."""
    one = nn.utils.parametrizations.weight_norm(nn.Linear(64, 64))
    old = nn.utils.weight_norm(nn.Linear(64, 10))
    return nn.Sequential(nn.Flatten(), one, nn.ReLU(), nn.Dropout(0.2), old)


SOUND: dict[str, Callable[[], nn.Module]] = {"batch norm": batch_normed, "weight norm": weight_normed, "small ViT": small_vit}
"""Networks for the digits, to be trained; none hides anything."""

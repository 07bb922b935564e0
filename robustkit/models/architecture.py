"""Networks as text: `conv(1,16,4,s2,p1)-relu-flatten-linear(3136,10)` builds an nn.Sequential.

Layers, joined by "-" (the position of a layer is its key in the state dict, as in nn.Sequential):

    conv(in,out,kernel[,sSTRIDE][,pPADDING][,nobias])      linear(in,out[,nobias])      bn(channels)
    avgpool(kernel[,sSTRIDE][,pPADDING])   maxpool(kernel[,sSTRIDE][,pPADDING])         globalavgpool
    relu   leakyrelu[(slope)]   sigmoid   tanh   dropout[(p)]   flatten
    dae(features,hidden[,kKERNEL][,noise=SIGMA][,always])  a denoising autoencoder, see models/denoiser.py
    abs(classes,latent[,SIDE][,starts=N][,steps=N][,published])  analysis by synthesis, a whole network, see models/synthesis.py
    res(BODY|SHORTCUT)     BODY(x) + SHORTCUT(x); an empty SHORTCUT is the identity

Nothing but this table can be built from a text, so a checkpoint's metadata cannot run code.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustkit.errors import BadInput, first_line, unknown
from robustkit.models.denoiser import Denoiser, drawing
from robustkit.models.synthesis import Synthesis
from robustkit.models.synthesising import synthesising

_DEPTH = 8
_LAYERS = 2000
_LONGEST = 200_000
"""Characters of a text."""
_CLASSES = 1000
"""Classes of an analysis by synthesis, each of which has a network of its own."""


class Residual(nn.Module):
    """body(x) + shortcut(x). Keys in the state dict: body.*, shortcut.*"""

    def __init__(self, body: nn.Sequential, shortcut: nn.Sequential) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)  # type: ignore[no-any-return]


def skeleton(text: str) -> nn.Sequential:
    """The network without storage (on the meta device): nothing is allocated, nothing drawn. Raises BadInput."""
    with torch.device("meta"):
        return _whole(text)


def build(text: str, seed: int = 0) -> nn.Sequential:
    """The network with PyTorch's default initialisation drawn from `seed`; the global generator is left as it was."""
    skeleton(text)
    with seeded(seed):
        return _whole(text)


class seeded:
    """Inside, torch's CPU generator starts at `seed`; afterwards it is where it was before."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.saved = torch.default_generator.get_state()
        torch.default_generator.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch.default_generator.set_state(self.saved)


def output_shape(text: str, input_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Shape of the logits of one image, (K,), found without computing; raises BadInput where layers do not fit."""
    net = skeleton(text).eval()
    try:
        with torch.no_grad():
            out: Tensor = net(torch.empty(2, *input_shape, device="meta"))
    except (RuntimeError, ValueError, IndexError, TypeError, OverflowError, MemoryError) as problem:
        line = first_line(problem)
        raise BadInput(f"architecture {_short(text)} does not take images {'x'.join(map(str, input_shape))}: {line}") from problem
    return tuple(out.shape[1:])


def _whole(text: str) -> nn.Sequential:
    if len(text) > _LONGEST:
        raise BadInput(f"architecture {_short(text)}: {len(text)} characters, at most {_LONGEST} are read")
    try:
        return synthesising(drawing(_chain(text, text, 0)))
    except ValueError as problem:
        raise BadInput(f"architecture {_short(text)}: {problem}") from problem


def _chain(text: str, whole: str, depth: int) -> nn.Sequential:
    if depth > _DEPTH:
        raise BadInput(f"architecture {_short(whole)}: res(...) nested deeper than {_DEPTH}")
    parts = split(text, "-", whole)
    if len(parts) > _LAYERS:
        raise BadInput(f"architecture {_short(whole)}: {len(parts)} layers, at most {_LAYERS} are read")
    return nn.Sequential(*(_layer(part.strip(), whole, depth) for part in parts))


def _layer(text: str, whole: str, depth: int) -> nn.Module:
    name, opened, inside = text.partition("(")
    if opened and not inside.endswith(")"):
        raise BadInput(f"architecture {_short(whole)}: expected layer(...) at {text!r}")
    if name == "res":
        branches = split(inside[:-1], "|", whole)
        if len(branches) != 2 or not branches[0].strip():
            raise BadInput(f"architecture {_short(whole)}: expected res(BODY|SHORTCUT) at {text!r}; the shortcut may be empty")
        body, shortcut = (_chain(b, whole, depth + 1) if b.strip() else nn.Sequential() for b in branches)
        return Residual(body, shortcut)
    if name not in _TABLE:
        raise unknown(f"layer in architecture {_short(whole)}:", name, [*_TABLE, "res"])
    arguments = [a.strip() for a in inside[:-1].split(",")] if inside[:-1].strip() else []
    try:
        return _TABLE[name](_Arguments(arguments))
    except (ValueError, TypeError, RuntimeError, OverflowError) as problem:
        raise BadInput(f"architecture {_short(whole)}: {text!r}: {first_line(problem)}") from problem


class _Arguments:
    """The arguments of one layer, taken one by one; `close` refuses what is left."""

    def __init__(self, given: list[str]) -> None:
        self.given = given

    def whole(self, what: str) -> int:
        if not self.given:
            raise ValueError(f"{what} is missing")
        text = self.given.pop(0)
        if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
            raise ValueError(f"{what} = {text!r}: expected a whole number above 0")
        return int(text)

    def optional(self, letter: str, default: int, least: int) -> int:
        for text in self.given:
            if text[:1] == letter and text[1:].isascii() and text[1:].isdigit() and len(text) <= 9:
                if int(text[1:]) < least:
                    raise ValueError(f"{text}: at least {letter}{least} is needed")
                self.given.remove(text)
                return int(text[1:])
        return default

    def flag(self, word: str) -> bool:
        found = word in self.given
        if found:
            self.given.remove(word)
        return found

    def named(self, word: str, default: float) -> float:
        for text in self.given:
            if text.startswith(f"{word}="):
                self.given.remove(text)
                return float(text[len(word) + 1 :])
        return default

    def real(self, default: float) -> float:
        found = float(self.given.pop(0)) if self.given else default
        if not math.isfinite(found):
            raise ValueError(f"{found}: expected a finite number")
        return found

    def close(self, layer: nn.Module) -> nn.Module:
        if self.given:
            raise ValueError(f"unexpected {', '.join(self.given)}")
        return layer


def _conv(a: _Arguments) -> nn.Module:
    cin, cout, kernel = a.whole("channels in"), a.whole("channels out"), a.whole("kernel")
    return a.close(nn.Conv2d(cin, cout, kernel, a.optional("s", 1, 1), a.optional("p", 0, 0), bias=not a.flag("nobias")))


def _linear(a: _Arguments) -> nn.Module:
    return a.close(nn.Linear(a.whole("features in"), a.whole("features out"), bias=not a.flag("nobias")))


def _dae(a: _Arguments) -> nn.Module:
    features, hidden = a.whole("features"), a.whole("hidden units")
    return a.close(Denoiser(features, hidden, a.optional("k", 0, 1), a.named("noise", 0.1), a.flag("always")))


def _abs(a: _Arguments) -> nn.Module:
    classes, latent, side = a.whole("classes"), a.whole("latent values"), 28
    if classes > _CLASSES:
        raise ValueError(f"{classes} classes: at most {_CLASSES}")
    if a.given and a.given[0].isdigit():
        side = a.whole("side")
    starts, steps = a.named("starts", 8000), a.named("steps", 50)
    if not (starts == int(starts) and steps == int(steps) and 1 <= starts <= 10**6 and 0 <= steps <= 10**5):
        raise ValueError(f"starts={starts:g}, steps={steps:g}: expected whole numbers, at least 1 start and 0 steps")
    return a.close(Synthesis(classes, latent, side, int(starts), int(steps), a.flag("published")))


def _pool(kind: Callable[[int, int, int], nn.Module]) -> Callable[[_Arguments], nn.Module]:
    def make(a: _Arguments) -> nn.Module:
        kernel = a.whole("kernel")
        return a.close(kind(kernel, a.optional("s", kernel, 1), a.optional("p", 0, 0)))

    return make


_TABLE: dict[str, Callable[[_Arguments], nn.Module]] = {
    "conv": _conv,
    "linear": _linear,
    "bn": lambda a: a.close(nn.BatchNorm2d(a.whole("channels"))),
    "dae": _dae,
    "abs": _abs,
    "avgpool": _pool(nn.AvgPool2d),
    "maxpool": _pool(nn.MaxPool2d),
    "globalavgpool": lambda a: a.close(nn.AdaptiveAvgPool2d(1)),
    "relu": lambda a: a.close(nn.ReLU()),
    "leakyrelu": lambda a: a.close(nn.LeakyReLU(a.real(0.01))),
    "sigmoid": lambda a: a.close(nn.Sigmoid()),
    "tanh": lambda a: a.close(nn.Tanh()),
    "dropout": lambda a: a.close(nn.Dropout(a.real(0.5))),
    "flatten": lambda a: a.close(nn.Flatten()),
}


def split(text: str, mark: str, whole: str) -> list[str]:
    """Split at `mark` outside parentheses; raises BadInput where they do not match."""
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth < 0:
            break
        if char == mark and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    if depth:
        raise BadInput(f"architecture {_short(whole)}: parentheses do not match")
    return [*parts, text[start:]]


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")

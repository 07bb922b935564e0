"""The networks robustkit trains by name, written in the architecture grammar.

- wong-small: Wong and Kolter, "Provable Defenses via the Convex Outer Adversarial Polytope", ICML 2018:
  16 and 32 filters 4x4 of stride 2, 100 hidden units.
- digits-cnn: a small network for 8x8 digits.
- mlp: fully connected, option hidden=[256,256].
- resnet-tiny: three residual blocks with batch normalisation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from robustkit.errors import BadInput, unknown
from robustkit.models.architecture import output_shape
from robustkit.spec import Spec, build, parse

Shape = tuple[int, int, int]


def architecture_names() -> list[str]:
    """The names `architecture_text` knows."""
    return sorted(_KNOWN)


def architecture_text(name: str, input_shape: Shape, classes: int) -> str:
    """The architecture of a named network, for images (C,H,W) and K classes.

    Args:
        name: wong-small, digits-cnn, resnet-tiny, mlp or mlp:hidden=[64,64]; a text that already is in
            the architecture grammar is checked and returned.

    Raises:
        BadInput: unknown name, or a network that does not fit the images or the classes.
    """
    text = name if _is_text(name) else _expand(parse(name), input_shape, classes)
    found = output_shape(text, input_shape)
    if found != (classes,):
        raise BadInput(f"architecture {name} gives {'x'.join(map(str, found))} outputs for one image, the data has {classes} classes")
    return text


def from_metadata(text: str, input_shape: Shape | None) -> str:
    """The grammar text of a checkpoint's `architecture`: itself, or what `zoo-arch:NAME:channels=1,...` stands for."""
    scheme, colon, rest = text.strip().partition(":")
    if scheme != "zoo-arch" or not colon:
        return text.strip()
    name, _, options = rest.partition(":")
    spec = parse(f"{name}:{options}" if options else rest.replace(",", ":", 1))
    own = {k: v for k, v in spec.options.items() if k in ("channels", "size", "classes")}
    given = build(_Fit, Spec(spec.name, spec.items, own), "zoo-arch")
    shape = input_shape or (1, 28, 28)
    height, width = (given.size, given.size) if given.size else shape[1:]
    rest_options = {k: v for k, v in spec.options.items() if k not in own}
    return _expand(Spec(spec.name, (), rest_options), (given.channels or shape[0], height, width), given.classes)


@dataclass(frozen=True)
class _Fit:
    channels: int = 0
    size: int = 0
    classes: int = 10

    positional: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class _Plain:
    """No options."""


@dataclass(frozen=True)
class _Mlp:
    hidden: tuple[int, ...] = (256, 256)

    positional: ClassVar[tuple[str, ...]] = ("hidden",)

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.hidden):
            raise BadInput("mlp: hidden widths must be at least 1")


def _wong_small(_: _Plain, shape: Shape, classes: int) -> str:
    channels, height, width = shape
    flat = 32 * _half(_half(height)) * _half(_half(width))
    return f"conv({channels},16,4,s2,p1)-relu-conv(16,32,4,s2,p1)-relu-flatten-linear({flat},100)-relu-linear(100,{classes})"


def _digits_cnn(_: _Plain, shape: Shape, classes: int) -> str:
    channels, height, width = shape
    flat = 32 * ((height + 1) // 2) * ((width + 1) // 2)
    return f"conv({channels},32,3,s1,p1)-relu-conv(32,32,3,s2,p1)-relu-flatten-linear({flat},64)-relu-linear(64,{classes})"


def _mlp(options: _Mlp, shape: Shape, classes: int) -> str:
    widths = (shape[0] * shape[1] * shape[2], *options.hidden)
    hidden = "".join(f"linear({a},{b})-relu-" for a, b in itertools.pairwise(widths))
    return f"flatten-{hidden}linear({widths[-1]},{classes})"


def _resnet_tiny(_: _Plain, shape: Shape, classes: int) -> str:
    def block(before: int, after: int, stride: int) -> str:
        body = f"conv({before},{after},3,s{stride},p1)-bn({after})-relu-conv({after},{after},3,s1,p1)-bn({after})"
        return f"res({body}|{'' if stride == 1 else f'conv({before},{after},1,s{stride})-bn({after})'})-relu"

    blocks = "-".join([block(16, 16, 1), block(16, 32, 2), block(32, 64, 2)])
    return f"conv({shape[0]},16,3,s1,p1)-bn(16)-relu-{blocks}-globalavgpool-flatten-linear(64,{classes})"


_KNOWN: dict[str, tuple[type, Callable[..., str]]] = {
    "wong-small": (_Plain, _wong_small),
    "digits-cnn": (_Plain, _digits_cnn),
    "mlp": (_Mlp, _mlp),
    "resnet-tiny": (_Plain, _resnet_tiny),
}


def _expand(spec: Spec, shape: Shape, classes: int) -> str:
    if spec.name not in _KNOWN:
        raise unknown("architecture", spec.name, _KNOWN)
    options, write = _KNOWN[spec.name]
    return write(build(options, spec, "architecture"), shape, classes)


def _half(size: int) -> int:
    """Output size of a 4-wide convolution of stride 2 and padding 1."""
    return (size - 2) // 2 + 1


def _is_text(name: str) -> bool:
    return "(" in name

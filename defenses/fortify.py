"""Denoising autoencoders put behind chosen layers of a network, in its architecture text or in the module itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.classifier import Classifier
from robustkit.errors import BadInput, unknown
from robustkit.models.architecture import skeleton, split
from robustkit.models.denoiser import Denoiser, denoisers
from robustkit.surface import Surface

Shape = tuple[int, ...]


def fortified_text(text: str, shape: tuple[int, int, int], layers: Sequence[str], inside: str, kernel: int = 0) -> str:
    """The architecture with a layer `dae(...)` behind each chosen layer.

    Args:
        text: in the architecture grammar.
        shape: (C,H,W) of an image.
        layers: module names of that network, such as `4` or `3.body.1`.
        inside: what follows the number of features in dae(...), for example `256,noise=0.1`.
        kernel: 0 for fully connected autoencoders, else the kernel of convolutional ones.

    Raises BadInput for a layer that is not there, or whose output is none a denoiser can take.
    """
    network = skeleton(text).eval()
    shapes = output_shapes(network, torch.empty(2, *shape, device="meta"))
    chosen = {name: f"dae({features(name, shapes, kernel)},{inside})" for name in layers}
    return _inserted(text, text, "", chosen)


def fortify(
    network: nn.Module, layers: Sequence[str], x: Tensor, *, hidden: int = 256, kernel: int = 0, noise: float = 0.1, always: bool = False
) -> nn.Module:
    """A copy of any network with a denoiser behind each of its modules `layers` (names as in named_modules).

    Args:
        x: (N,C,H,W) a few images, for the sizes of the layers' outputs.

    Weights start at torch's defaults, drawn from the global generator. A copy that draws noise when
    deployed (`always`) declares it as its adaptive surface. Raises BadInput.
    """
    made = copy.deepcopy(network)
    modes = {part: part.training for part in made.modules()}
    shapes = output_shapes(made.eval(), x)
    for part, training in modes.items():
        part.training = training
    for name in layers:
        denoiser = Denoiser(features(name, shapes, kernel), hidden, kernel, noise, always)
        parent, _, last = name.rpartition(".")
        before = made.get_submodule(name)
        pair = nn.Sequential(before, denoiser.to(x.device).train(before.training))
        pair.training = before.training
        setattr(made.get_submodule(parent), last, pair)
    if always and noise > 0:
        made.adaptive_surface = Surface(random="vote")  # type: ignore[assignment]
    return made


def output_shapes(network: nn.Module, x: Tensor) -> dict[str, Shape]:
    """Shape of one sample of every module's output that is a tensor, by module name."""
    found: dict[str, Shape] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, given: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                found[name] = tuple(out.shape[1:])

        return hook

    hooks = [part.register_forward_hook(note(name)) for name, part in network.named_modules() if name]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def features(name: str, shapes: dict[str, Shape], kernel: int) -> int:
    """What a denoiser behind a layer has to take; raises BadInput."""
    if name not in shapes:
        raise unknown("layer to fortify", name, shapes)
    shape = shapes[name]
    if kernel and len(shape) != 3:
        raise BadInput(f"layer {name} gives {shape} for one image: a convolutional denoiser needs (C,H,W); leave kernel at 0")
    return shape[0] if kernel else torch.Size(shape).numel()


@contextmanager
def states(network: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inside, every forward appends (state before, state decoded) of each denoiser to the list."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append((given[0], out))

    hooks = [part.register_forward_hook(note) for part in denoisers(network).values()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def reconstruction_error(classifier: Classifier, x: Tensor) -> Tensor:
    """(N,) mean squared distance of the decoded from the hidden state, summed over the denoisers: high is suspicious.

    Args:
        x: (N,C,H,W) images in [0,1]. Gradients flow where they are on, as an adversary wants them.

    Raises BadInput for a model without denoisers.
    """
    network = classifier.module
    if not isinstance(network, nn.Module) or not denoisers(network):
        raise BadInput(f"the model {classifier.spec} has no denoiser: train one with the recipe fortified")
    with states(network) as seen:
        classifier.forward(x.to(classifier.device))
    return torch.stack([distance(decoded, before) for before, decoded in seen]).sum(0)


def distance(one: Tensor, other: Tensor) -> Tensor:
    """(R,) mean over all values of a sample of the squared difference."""
    return (one - other).square().flatten(1).mean(1)


def _inserted(text: str, whole: str, prefix: str, chosen: dict[str, str]) -> str:
    """A chain of the grammar with what is chosen put behind its layers, also inside res(...)."""
    parts = []
    for number, part in enumerate(split(text, "-", whole)):
        name = f"{prefix}{number}"
        if part.strip().startswith("res("):
            branches = zip(("body", "shortcut"), split(part.strip()[4:-1], "|", whole))
            inner = [_inserted(b, whole, f"{name}.{which}.", chosen) if b.strip() else b for which, b in branches]
            part = f"res({'|'.join(inner)})"
        parts += [part, chosen[name]] if name in chosen else [part]
    return "-".join(parts)

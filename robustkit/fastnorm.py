"""Convolutions with batch normalisation behind them, on the CPU: one convolution, of weights that hold both.

In eval mode batch normalisation scales and shifts every channel, which the convolution before it can
do by itself; and such networks are fed channels last, the layout that oneDNN's kernels without strides
like best, unless there are many channels for the size of the images. A gradient takes 0.6 to 0.9 of its
time (with strides, where fastgrad gains more, up to 1.8). The same numbers up to rounding, which does
not depend on the batch. For the search only, as the other fast layers.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

_WIDE = 2000
"""Weights of convolutions for every pixel of an image from which the usual layout is the faster one."""

Pair = tuple[nn.Conv2d, nn.BatchNorm2d]


class FoldedConv2d(nn.Conv2d):
    """A convolution that does what the batch normalisation behind it did, too."""

    behind: nn.BatchNorm2d
    _made: tuple[tuple[tuple[int, int], ...], Tensor, Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """(N,C,H,W) -> (N,K,H,W)."""
        weight, bias = self._weights()
        conv: Any = self
        return functional.conv2d(input, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    def _weights(self) -> tuple[Tensor, Tensor]:
        """The weights of both as one convolution's, made anew where any has changed."""
        own = [self.weight] if self.bias is None else [self.weight, self.bias]
        tensors = [*own, *self.behind.parameters(), *self.behind.buffers()]
        stamp = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        if self._made is None or self._made[0] != stamp:
            norm: Any = self.behind
            scale = (norm.running_var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight)
            shift = -norm.running_mean if self.bias is None else self.bias - norm.running_mean
            bias = shift * scale + (0.0 if norm.bias is None else norm.bias)
            self._made = stamp, (self.weight * scale[:, None, None, None]).detach(), bias.detach()
        return self._made[1:]


class AbsorbedNorm2d(nn.BatchNorm2d):
    """A batch normalisation that the convolution before it has done."""

    def forward(self, input: Tensor) -> Tensor:
        """The input."""
        return input


class FoldedNetwork(nn.Module):
    """A network with such pairs, fed images in the layout that suits it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.weights = sum(part.weight.numel() for part in network.modules() if isinstance(part, nn.Conv2d))

    def forward(self, x: Tensor, *keys: Tensor) -> Tensor:
        """(N,C,H,W), and the keys of a random model -> logits."""
        if self.weights < _WIDE * x[0, 0].numel():
            x = x.contiguous(memory_format=torch.channels_last)
        found: Tensor = self.network(x, *keys)
        return found


def folds(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether a layer and the one after it are such a pair, whose statistics stand."""
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and type(norm) is nn.BatchNorm2d and norm.running_mean is not None
    return plain and not any(part._forward_hooks or part._forward_pre_hooks for part in (conv, norm))


def pairs(module: nn.Module) -> list[Pair]:
    """The layers of a network that become one, two by two.

    None unless that rids it of a third of the batch normalisation at least, and most convolutions have no stride: it pays
    nowhere else.
    """
    norms = sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    strides = [max(part.stride) for part in module.modules() if isinstance(part, nn.Conv2d)]
    if not norms or 2 * strides.count(1) <= len(strides):
        return []
    double = copy.deepcopy(module)  # a forward that is followed may leave traces of that
    names = {part: name for name, part in double.named_modules()}
    with torch.random.fork_rng(devices=[]):
        found = _pairs(double, outermost=True)
    once = Counter(part for pair in found for part in pair)
    chosen = [(names[conv], names[norm]) for conv, norm in found if once[conv] == once[norm] == 1]
    if 3 * len(chosen) < norms:
        return []
    return [cast(Pair, tuple(module.get_submodule(name) for name in pair)) for pair in chosen]


def _pairs(module: nn.Module, outermost: bool = False) -> list[Pair]:
    """The pairs in a module's graph and in the parts that it leaves closed, or in those of its parts where it has none."""
    found, parts = [], list(module.children())
    if not parts or not any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
        return []
    if _opens(module, outermost):
        try:
            graph = _Tracer().trace(module)
            found = _of_graph(module, graph)
            parts = [module.get_submodule(name) for name in _calls(graph)]
        except Exception:  # whatever a forward that cannot be traced raises
            pass
    return found + [pair for part in parts for pair in _pairs(part)]


def _opens(module: nn.Module, outermost: bool = False) -> bool:
    """Whether a module's forward is called to look at it: a network's, not that of what may be wrapped around one to count."""
    known = type(module).__module__.startswith(("torch.", "torchvision.", "robustkit."))
    return known or (not outermost and any(isinstance(child, nn.BatchNorm2d) for child in module.children()))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not _opens(m)


def _calls(graph: fx.Graph) -> Counter[str]:
    """How often each part is called, by its name."""
    return Counter(str(node.target) for node in graph.nodes if node.op == "call_module")


def _of_graph(module: nn.Module, graph: fx.Graph) -> list[Pair]:
    """Normalisations whose input is a convolution that nothing else sees, both called once and read by nobody else."""
    calls = _calls(graph)
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    found = []
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        names = str(before.target), str(node.target)
        conv, norm = (module.get_submodule(name) for name in names)
        if folds(conv, norm) and all(calls[name] == 1 and name not in read for name in names):
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            found.append((conv, norm))
    return found


def fold(module: nn.Module) -> nn.Module:
    """The network with such pairs made one; itself where there are none.

    A forward may use its layers in ways that their graphs do not show: compare the numbers before relying on it.
    """
    found = pairs(module)
    for conv, norm in found:
        conv.__class__, norm.__class__ = FoldedConv2d, AbsorbedNorm2d
        conv.behind = norm
    return FoldedNetwork(module) if found else module

"""The traced graph computes what the module computes, reads live weights, and names what it cannot do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.certify import ops, rules
from robustkit.certify.graph import Graph, trace
from robustkit.certify.interval import interval_logits
from robustkit.errors import BadInput

Made = tuple[nn.Module, tuple[int, ...]]
IMAGE = (1, 4, 4)


class Of(nn.Module):
    """A module whose forward is any function."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def kinds(graph: Graph, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[str]:
    return [type(node.op).__name__ for node in graph.network(shape, dtype).nodes]


def refused(module: nn.Module, shape: tuple[int, ...] = IMAGE) -> str:
    with pytest.raises(BadInput) as caught:
        trace(module).network(shape)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_computes_what_the_module_computes(network: Made) -> None:
    module, shape = network
    x = torch.rand(7, *shape, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(trace(module).network(shape, torch.float64).forward(x), module(x), rtol=1e-10, atol=1e-10)


def test_leaves_the_module_as_it_was(network: Made) -> None:
    module, shape = network
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trace(module).network(shape, torch.float64)
    assert module.training and all(p.requires_grad for p in module.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_folds_batch_norm_and_normalisation(make_network: Callable[..., Made]) -> None:
    module, shape = make_network("norms")
    assert kinds(trace(module), shape) == ["Input", "Conv", "ReLU", "Scale", "Conv", "Reshape", "Linear", "ReLU", "Linear"]
    unpadded = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).double()
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    graph = trace(unpadded, mean=mean, std=std)
    assert kinds(graph, (3, 4, 4)) == ["Input", "Conv", "ReLU", "Reshape", "Linear"]
    x = torch.rand(5, 3, 4, 4, dtype=torch.float64)
    expected = unpadded((x - mean.double().view(3, 1, 1)) / std.double().view(3, 1, 1))
    torch.testing.assert_close(graph.network((3, 4, 4), torch.float64).forward(x), expected)


def test_normalisation_stays_in_front_of_padding() -> None:
    padded = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(32, 2)).double()
    graph = trace(padded, mean=torch.tensor([0.5]))
    assert kinds(graph, IMAGE) == ["Input", "Scale", "Conv", "Reshape", "Linear"]
    x = torch.rand(5, *IMAGE, dtype=torch.float64)
    torch.testing.assert_close(graph.network(IMAGE, torch.float64).forward(x), padded(x - 0.5))


def test_reads_the_weights_of_the_moment() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 2))
    graph, x = trace(module), torch.rand(4, *IMAGE)
    before = graph.network(IMAGE).forward(x)
    snapshot = graph.network(IMAGE, copy=True)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3)
    assert not torch.allclose(graph.network(IMAGE).forward(x), before)
    assert torch.allclose(graph.network(IMAGE).forward(x), module(x))
    assert torch.allclose(snapshot.forward(x), before)


def test_gradients_reach_the_modules_own_parameters(make_network: Callable[..., Made]) -> None:
    module, shape = make_network("norms")
    x = torch.rand(3, *shape, dtype=torch.float64)
    trace(module).network(shape, torch.float64).forward(x).square().sum().backward()
    ours = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    module(x).square().sum().backward()
    theirs = [p.grad for p in module.parameters() if p.grad is not None]
    assert len(ours) == len(theirs) == len(list(module.parameters()))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)


def test_parametrised_weights_stay_live() -> None:
    module = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(16, 2)))
    graph, x = trace(module), torch.rand(4, *IMAGE)
    graph.network(IMAGE)
    with torch.no_grad():
        next(module.parameters()).mul_(3)
    assert torch.allclose(graph.network(IMAGE).forward(x), module(x), atol=1e-6)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Sequential(nn.Mish())), ["Mish", "layer '2.0'"]),
        (Of(lambda self, x: F.mish(x).flatten(1)), ["mish", "test_graph.py:"]),
        (Of(lambda self, x: x.flatten(1).cumsum(1)), ["Tensor.cumsum", "test_graph.py:"]),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Softmax(dim=1)), ["Softmax", "layer '2'"]),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten()), ["Conv2d", "layer '0'", "reflect"]),
        (nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten()), ["BatchNorm2d", "statistics"]),
        (nn.Sequential(nn.LeakyReLU(-0.5), nn.Flatten()), ["LeakyReLU", "negative_slope"]),
        (Of(lambda self, x: (x * x).flatten(1)), ["mul", "product"]),
        (Of(lambda self, x: (1 / x).flatten(1)), ["truediv", "dividing"]),
        (Of(lambda self, x: F.dropout(x).flatten(1)), ["dropout", "random"]),
        (Of(lambda self, x: x.flatten(1) + torch.ones(5, 16)), ["add", "does not fit"]),
        (Of(lambda self, x: (x - x.mean()).flatten(1)), ["mean", "one row per image"]),
        (Of(lambda self, x: (x - x.mean(0, keepdim=True)).flatten(1)), ["mean", "one row per image"]),
        (Of(lambda self, x: x[1:].flatten(1)), ["getitem", "one row per image"]),
        (Of(lambda self, x: x.flatten(1)[[4, 3, 2, 1, 0]]), ["getitem", "rows of the batch"]),
        (Of(lambda self, x: x.view(-1, 8)), ["view", "one row per image"]),
    ],
)
def test_unsupported_operations_are_named_with_their_place(module: nn.Module, words: list[str]) -> None:
    message = refused(module)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Of(lambda self, x: x.flatten(1) if x.sum() > 0 else -x.flatten(1)), ["branches on pixel values", "test_graph.py:"]),
        (Of(lambda self, x: [x][int(x[0, 0, 0, 0])].flatten(1)), ["cannot be traced", "test_graph.py:"]),
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), ["cannot be traced on images of shape (1, 4, 4)"]),
        (Of(lambda self, x: (x.flatten(1), x)), ["returns tuple"]),
        (Of(lambda self, x: x), ["expected logits"]),
        (Of(lambda self, x: torch.zeros(len(x), 2)), ["depends on the image"]),
    ],
)
def test_what_cannot_be_traced_is_said_in_one_line(module: nn.Module, words: list[str]) -> None:
    message = refused(module)
    assert all(word in message for word in words), message


def test_hooks_and_hidden_changes_are_found() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    module[1].register_forward_hook(lambda m, args, out: out * 2)
    assert "does not compute what its layers say" in refused(module)

    def alias(self: nn.Module, x: Tensor) -> Tensor:
        x = x.flatten(1) * 1
        y = x.view(-1, 4, 4)
        y.relu_()
        return x - 0.5

    assert "does not compute" in refused(Of(lambda self, x: alias(self, x - 0.5)))


def test_a_subclass_with_its_own_forward_is_traced_through() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    module, x = nn.Sequential(nn.Flatten(), Doubled(16, 2)), torch.rand(3, *IMAGE)
    assert torch.allclose(trace(module).network(IMAGE).forward(x), module(x))


def test_weights_made_in_forward_certify_but_do_not_train() -> None:
    def centred(self: Any, x: Tensor) -> Tensor:
        weight = self.layer.weight
        return F.linear(x.flatten(1), weight - weight.mean(), self.layer.bias)

    module, x = Of(centred, layer=nn.Linear(16, 2)), torch.rand(3, *IMAGE)
    assert "inside forward" in refused(module)
    module.requires_grad_(False)
    assert torch.allclose(trace(module).network(IMAGE).forward(x), module(x))


def test_a_plain_function_is_refused() -> None:
    with pytest.raises(BadInput, match="no nn.Module"):
        trace(lambda x: x.flatten(1))  # type: ignore[arg-type]


def test_dead_branches_are_dropped() -> None:
    module = Of(lambda self, x: (self.a(x.flatten(1)), self.b(x.flatten(1)))[0], a=nn.Linear(16, 2), b=nn.Linear(16, 9))
    assert kinds(trace(module), IMAGE, torch.float32) == ["Input", "Reshape", "Linear"]


def test_a_further_operation_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    class Softsign(ops.Monotone):
        def forward(self, *inputs: Tensor) -> Tensor:
            return F.softsign(inputs[0])

    class Other(ops.Op):
        def forward(self, *inputs: Tensor) -> Tensor:
            return F.softsign(inputs[0])

    module, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 2), nn.Softsign()), torch.rand(3, *IMAGE)
    assert "Softsign" in refused(module)
    monkeypatch.setitem(rules.TABLE, nn.Softsign, lambda build, layer, value: build.add(Softsign(), value))
    low, high = interval_logits(trace(module), x, x)
    assert torch.allclose(low, module(x), atol=1e-5) and torch.allclose(high, module(x), atol=1e-5)
    monkeypatch.setitem(rules.TABLE, nn.Softsign, lambda build, layer, value: build.add(Other(), value))
    with pytest.raises(BadInput, match=r"no rule for Other \(in layer '2'\)"):
        interval_logits(trace(module), x, x)

"""Convolutions that hold the batch normalisation behind them: the numbers of the two, whatever the batch, and always today's weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks import PGD
from robustkit.classifier import Classifier
from robustkit.fastnorm import FoldedConv2d, FoldedNetwork, pairs
from robustkit.models.architecture import build
from robustkit.models.architectures import architecture_text

SHAPES = {
    "resnet-tiny": (3, 32, 32),
    "conv(1,6,4,s2,p1)-bn(6)-relu-conv(6,8,3,nobias)-bn(8)-relu-conv(8,8,3)-bn(8)-relu-flatten-linear(800,4)": (1, 28, 28),
}


def network(name: str) -> nn.Sequential:
    return statistics(build(architecture_text(name, SHAPES[name], 4)))


def statistics(made: Any) -> Any:
    """The network in eval mode, with statistics as a training leaves them."""
    draws = torch.Generator().manual_seed(3)
    for norm in (part for part in made.modules() if isinstance(part, nn.BatchNorm2d)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            for tensor, low in ((norm.running_mean, -0.3), (norm.running_var, 0.5), (norm.weight, 0.5), (norm.bias, -0.3)):
                tensor.uniform_(low, low + 1.0, generator=draws)
    return made.eval()


def gradient(classifier: Classifier, ask: str, x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(getattr(classifier, ask)(leaf)[:, 0].sum(), leaf)[0]


@pytest.mark.parametrize("name", SHAPES)
def test_the_search_has_the_numbers_of_the_model(name: str) -> None:
    plain = network(name)
    classifier, x = Classifier(plain), torch.rand(32, *SHAPES[name])
    folded = [part for part in classifier.searcher.modules() if isinstance(part, FoldedConv2d)]  # type: ignore[union-attr]
    assert isinstance(classifier.searcher, FoldedNetwork)
    assert len(folded) == sum(isinstance(part, nn.BatchNorm2d) for part in plain.modules())
    torch.testing.assert_close(classifier.search(x), classifier.forward(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient(classifier, "search", x), gradient(classifier, "forward", x), rtol=1e-3, atol=1e-6)
    assert not any(isinstance(part, FoldedConv2d) for part in classifier.module.modules())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    classifier, x = Classifier(network(name)), torch.rand(192, *SHAPES[name])
    with torch.no_grad():
        whole, slope = classifier.search(x), gradient(classifier, "search", x)
        for count in (16, 48, 96):
            for first in (0, 16, 80):
                part = slice(first, first + count)
                assert torch.equal(classifier.search(x[part]), whole[part]), (count, first)
                assert torch.equal(gradient(classifier, "search", x[part]), slope[part]), (count, first)


def test_weights_that_are_trained_further_are_seen() -> None:
    plain = network("resnet-tiny")
    classifier, x = Classifier(plain), torch.rand(16, 3, 32, 32)
    before = classifier.search(x)
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.1)
    plain.train()(x).square().sum().backward()
    optimiser.step()
    plain.eval()
    assert not torch.allclose(classifier.search(x), before, rtol=1e-3)
    torch.testing.assert_close(classifier.search(x), classifier.forward(x), rtol=1e-4, atol=1e-4)


def test_only_pairs_whose_statistics_stand_and_that_nobody_watches() -> None:
    hooked = nn.BatchNorm2d(4)
    hooked.register_forward_hook(lambda *_: None)
    for norm in (nn.BatchNorm2d(4, track_running_stats=False), nn.InstanceNorm2d(4), nn.ReLU(), hooked):
        assert not pairs(nn.Sequential(nn.Conv2d(3, 4, 3), norm))
    assert not pairs(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4)))
    assert not pairs(nn.Sequential(nn.Conv2d(3, 4, 4, 2), nn.BatchNorm2d(4)))
    one = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False))
    assert len(pairs(one)) == 1
    assert len(pairs(nn.Sequential(one, nn.ReLU(), nn.BatchNorm2d(4)))) == 1
    assert not pairs(nn.Sequential(one, nn.ReLU(), *(nn.BatchNorm2d(4) for _ in range(3))))


class Block(nn.Module):
    """As people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + x)


class Network(nn.Module):
    calls = 0

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.blocks, self.last = nn.Sequential(*blocks), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        Network.calls += 1
        y: Tensor = self.last(self.blocks(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))
        return y


def test_networks_of_somebodys_own_are_folded_without_being_asked() -> None:
    plain = statistics(Network(Block(), Block()))
    Network.calls = 0
    classifier, x = Classifier(plain), torch.rand(48, 3, 8, 8)
    assert Network.calls == 0, "a forward that may count is not called to look at it"
    assert sum(isinstance(part, FoldedConv2d) for part in classifier.searcher.modules()) == 4  # type: ignore[union-attr]
    torch.testing.assert_close(classifier.search(x), classifier.forward(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient(classifier, "search", x), gradient(classifier, "forward", x), rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(classifier.search(x[16:32]), classifier.search(x)[16:32])


class Twice(Block):
    """The first convolution's output goes another way too."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        return torch.relu(self.bn1(y) + y) + self.bn2(self.conv2(x))


class Again(Block):
    """The first pair is called twice, once each on its own."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn1(self.conv1(self.conv1(x)))) + self.bn2(self.conv2(x))


class Reading(Block):
    """Somebody looks at the first convolution's weights."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)) * self.conv1.weight.sum() + self.bn2(self.conv2(x))


class Branching(Block):
    """No graph: what it does depends on the numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if bool(x.sum() > 0) else x


@pytest.mark.parametrize(("kind", "expected"), [(Twice, 1), (Again, 1), (Reading, 1), (Branching, 0)])
def test_layers_with_other_ties_are_left_alone(kind: type[Block], expected: int) -> None:
    plain = statistics(nn.Sequential(Block(), kind(), nn.Flatten(), nn.Linear(256, 5)))
    found = pairs(nn.Sequential(plain[1]))
    assert len(found) == expected and all(conv is plain[1].conv2 for conv, _ in found)
    classifier, x = Classifier(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *plain)), torch.rand(32, 3, 8, 8)
    torch.testing.assert_close(classifier.search(x), classifier.forward(x), rtol=1e-4, atol=1e-4)


class Layout(nn.Module):
    """Tells how the features lie that it is given."""

    seen: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.is_contiguous()
        return x


@pytest.mark.parametrize(("size", "usual"), [(4, True), (32, False)])
def test_many_channels_for_the_size_of_the_images_stay_in_the_usual_layout(size: int, usual: bool) -> None:
    convs = [nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128)]
    classifier = Classifier(statistics(nn.Sequential(*convs, Layout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 5))))
    x = torch.rand(48, 3, size, size)
    torch.testing.assert_close(classifier.search(x), classifier.forward(x), rtol=1e-4, atol=1e-5)
    assert [part.seen for part in classifier.searcher.modules() if isinstance(part, Layout)] == [usual]  # type: ignore[union-attr]
    with torch.no_grad():
        assert torch.equal(classifier.search(x[16:32]), classifier.search(x)[16:32])


class Meter(nn.Module):
    """What people put in front of a network, or around it, to know how often it is asked."""

    rows: Any = 0

    def __init__(self, around: nn.Module) -> None:
        super().__init__()
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        Meter.rows += x.shape[0]
        y: Tensor = self.around(x)
        return y


class Keeping(Block):
    """Remembers what it has seen, as hooks for features do."""

    last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        torch.rand(3)
        return super().forward(x)


def test_looking_for_pairs_leaves_no_traces() -> None:
    plain = statistics(nn.Sequential(Meter(nn.Identity()), Meter(Network(Keeping(), Block()))))
    Meter.rows, draws = 0, torch.get_rng_state()
    classifier = Classifier(plain)
    assert Meter.rows == 0 and torch.equal(torch.get_rng_state(), draws)
    assert classifier.module[1].around.blocks[0].last is None  # type: ignore[union-attr,index]
    assert sum(isinstance(part, FoldedConv2d) for part in classifier.searcher.modules()) == 5  # type: ignore[union-attr]
    x = torch.rand(16, 3, 8, 8)
    torch.testing.assert_close(classifier.search(x), classifier.forward(x), rtol=1e-4, atol=1e-5)
    assert Meter.rows == 64


class Switching(nn.Module):
    """One convolution, and a normalisation for every domain."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y if x.sum() else -y


def test_a_convolution_of_two_normalisations_is_left_alone() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    plain = statistics(nn.Sequential(Block(), nn.Sequential(Switching(shared)), Switching(shared), nn.Sequential(Block())))
    assert len(pairs(plain)) == 4
    both = nn.Sequential(nn.Sequential(shared, nn.BatchNorm2d(4)), Branching(), nn.Sequential(shared, nn.BatchNorm2d(4)))
    assert not pairs(statistics(both))


class Features(nn.Module):
    """Asks for its layers one by one, which their graph does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                seen.append(x.mean((2, 3)))
        return torch.cat(seen, 1)


class Viewing(nn.Module):
    """Needs its features in the usual layout."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.last = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Linear(144, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.features(x).view(len(x), -1))
        return y


@pytest.mark.parametrize("kind", [Features, Viewing])
def test_a_network_that_needs_its_own_layers_searches_with_them(kind: type[nn.Module]) -> None:
    classifier, x = Classifier(statistics(kind())), torch.rand(4, 3, 8, 8)
    assert isinstance(classifier.searcher, FoldedNetwork)
    classifier.check(x[:1])
    assert classifier.searcher is classifier.module
    assert torch.equal(classifier.search(x), classifier.forward(x))


@pytest.mark.parametrize("name", SHAPES)
def test_others_go_on_searching_with_the_faster_ones(name: str) -> None:
    classifier = Classifier(network(name))
    classifier.check(torch.rand(1, *SHAPES[name]))
    assert isinstance(classifier.searcher, FoldedNetwork)


def test_witnesses_stand_before_the_model_itself() -> None:
    plain = network(list(SHAPES)[1])
    x = torch.rand(48, 1, 28, 28)
    y = Classifier(plain).logits(x).argmax(1)
    found = PGD(steps=20)(Classifier(plain), x, y, threat="linf:0.3", seed=0)
    assert bool(found.success.any())
    assert bool((plain(found.adversarial[found.success]).argmax(1) != y[found.success]).all())

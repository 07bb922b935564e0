"""Linear layers by oneDNN: torch's own numbers up to rounding, the same whatever the batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustkit import Linf
from robustkit.attacks import PGD
from robustkit.classifier import Classifier
from robustkit.fastlinear import FastLinear, gains
from robustkit.quick import quicken

here = pytest.mark.skipif(not gains(nn.Linear(64, 64)), reason="no x86 CPU with oneDNN")


def both(inside: int, outside: int, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(inside, outside, bias).requires_grad_(False)
    fast = nn.Linear(inside, outside, bias).requires_grad_(False)
    fast.load_state_dict(plain.state_dict())
    fast.__class__ = FastLinear
    return plain, fast


@here
@pytest.mark.parametrize("shape", [(0,), (1,), (48,), (3, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_matches_torch(shape: tuple[int, ...], bias: bool) -> None:
    plain, fast = both(300, 70, bias)
    x = torch.randn(*shape, 300)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    outs = [layer(leaf) for layer, leaf in zip((plain, fast), leaves)]
    weights = torch.randn(*shape, 70)
    grads = [torch.autograd.grad((out * weights).sum(), leaf)[0] for out, leaf in zip(outs, leaves)]
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(fast(x), outs[1])


@here
@pytest.mark.parametrize(("inside", "outside"), [(1568, 100), (100, 10), (784, 256), (64, 2048)])
def test_a_row_does_not_depend_on_its_batch(inside: int, outside: int) -> None:
    _, fast = both(inside, outside)
    x = torch.randn(1024, inside)
    whole = fast(x)
    for count in (16, 48, 192, 384, 768):
        for first in (0, 16, 256):
            part = x[first : first + count].clone()
            assert torch.equal(fast(part), whole[first : first + len(part)])


@here
def test_several_gradients_at_once() -> None:
    plain, fast = both(64, 32)
    x = torch.randn(4, 64)
    found = []
    for layer in (plain, fast):
        leaf = x.clone().requires_grad_()
        picks = torch.eye(32)[:, None].expand(-1, 4, -1)
        found.append(torch.autograd.grad(layer(leaf), leaf, picks, is_grads_batched=True)[0])
    torch.testing.assert_close(found[1], found[0])


@here
def test_other_types_and_trainable_weights_go_the_old_way() -> None:
    plain, fast = both(64, 32)
    x = torch.randn(4, 64, dtype=torch.float64)
    assert torch.equal(fast.double()(x), plain.double()(x))
    _, fast = both(64, 32)
    fast.requires_grad_(True)
    fast(torch.randn(4, 64)).sum().backward()
    assert fast.weight.grad is not None


@here
def test_not_finite_values_stay_so() -> None:
    _, fast = both(64, 32)
    x = torch.randn(16, 64)
    x[3, 5], x[4, 6] = torch.nan, torch.inf
    out = fast(x)
    assert out[3].isnan().all()
    assert not out[4].isfinite().any()
    assert out[5].isfinite().all()


def test_only_large_plain_layers() -> None:
    assert not gains(nn.Linear(4, 3))
    assert not gains(nn.Linear(64, 64).double())
    assert not gains(nn.Conv2d(64, 64, 3))


@here
def test_the_search_uses_it_and_the_judge_does_not() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    classifier = Classifier(network)
    assert isinstance(classifier.module, nn.Sequential)
    assert isinstance(classifier.searcher, nn.Sequential)
    assert [type(layer) for layer in (network[1], classifier.module[1], classifier.searcher[1])] == [nn.Linear, nn.Linear, FastLinear]
    x = torch.rand(16, 1, 8, 8)
    y = classifier.logits(x).argmax(1)
    found = PGD(steps=20)(classifier, x, y, threat=Linf("0.3"), seed=0)
    assert bool(found.success.any())
    judged = network(found.adversarial[found.success]).argmax(1)
    assert bool((judged != y[found.success]).all())


@here
def test_quicken_keeps_the_tensors() -> None:
    layer = nn.Linear(64, 64)
    weight = layer.weight
    assert quicken(layer) is layer
    assert layer.weight is weight

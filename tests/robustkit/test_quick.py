"""The network that attacks search with gives the model's own logits and gradients, for networks as torchvision has them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustkit.classifier import Classifier
from robustkit.torchvision_compat import torchvision

NAMES = ("alexnet", "convnext_tiny", "densenet121", "mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "swin_t", "vgg11_bn")


@pytest.mark.parametrize("name", NAMES)
def test_networks_of_every_kind(name: str) -> None:
    torch.manual_seed(0)
    plain = getattr(torchvision().models, name)(num_classes=10).eval()
    for norm in (part for part in plain.modules() if isinstance(part, nn.BatchNorm2d)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.8, 1.2)
    classifier, x = Classifier(plain), torch.rand(4, 3, 64, 64)
    classifier.check(x[:1])
    assert classifier.searcher is not classifier.module
    expected = classifier.forward(x)
    torch.testing.assert_close(classifier.search(x), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))

    def gradient(ask: str) -> Tensor:
        leaf = x.clone().requires_grad_()
        found = torch.autograd.grad(getattr(classifier, ask)(leaf)[:, 0].sum(), leaf)[0].flatten(1)
        return found / found.norm(dim=1, keepdim=True)

    alike = (gradient("search") * gradient("forward")).sum(1)
    assert float(alike.min()) > 0.99, "but for pixels behind a unit at its kink"

"""Models by name: the bundled ones, torchvision's, archives, the user's own code, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_cases import SMALL
from torch import nn

from robustkit.classifier import Classifier
from robustkit.errors import BadInput, Missing
from robustkit.models import build, load_model, zoo_names

# ---- names


def test_every_zoo_model_loads() -> None:
    for name in zoo_names():
        model = load_model(f"zoo:{name}")
        assert model.input_shape is not None
        assert model.spec == f"zoo:{name}"
        assert model.logits(torch.rand(2, *model.input_shape)).shape == (2, model.classes)


def test_torchvision_models(tmp_path: Path) -> None:
    first = load_model("torchvision:squeezenet1_1,classes=3")
    again = load_model(first.spec)
    assert load_model("torchvision:squeezenet1_1:classes=3").sha256 == first.sha256 == again.sha256
    assert load_model("torchvision:squeezenet1_1,classes=3,seed=1").sha256 != first.sha256
    assert first.metadata["weights"] == "random, seed 0"
    assert first.classes == 3
    assert first.logits(torch.rand(2, 3, 64, 64)).shape == (2, 3)
    assert isinstance(first.original, nn.Module)
    save_file(first.original.state_dict(), tmp_path / "w.safetensors")
    loaded = load_model(f"torchvision:squeezenet1_1,classes=3,seed=7,weights={tmp_path / 'w.safetensors'},mean=[0.5],std=[0.2]")
    x = torch.rand(2, 3, 64, 64)
    assert torch.allclose(loaded.logits(x), first.logits((x - 0.5) / 0.2), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("torchvision:squeezenet9", "did you mean 'squeezenet1_"),
        ("torchvision:", "malformed"),
        ("torchvision:squeezenet1_1,classes=1", "at least 2"),
        ("torchvision:squeezenet1_1,clases=3", "did you mean 'classes'"),
        ("torchvision:squeezenet1_1,mean=[1,2]", "1 or 3 values"),
        ("zoo:no-such-model", "unknown zoo model"),
        ("no-such-model", "unknown model"),
        ("", "unknown model"),
        ("no_such_module:make", "no module 'no_such_module'"),
        ("model.py:make", "without .py"),
    ],
)
def test_unknown_models_are_named(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        load_model(text)


@pytest.mark.parametrize("text", ["nothing.safetensors", "some/model", "m.PT", "torchvision:squeezenet1_1,weights=nothing.safetensors"])
def test_absent_files_are_missing(text: str) -> None:
    with pytest.raises(Missing, match="there is no such file"):
        load_model(text)


def test_folders_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a folder"):
        load_model(tmp_path)


# ---- archives


@pytest.mark.parametrize("batch", [None, 3])
def test_exported_programs(tmp_path: Path, batch: int | None) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval()
    shapes = None if batch else ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(net, (torch.rand(batch or 2, 1, 8, 8),), dynamic_shapes=shapes), tmp_path / "m.pt2")
    with pytest.raises(BadInput, match="--allow-code"):
        load_model(tmp_path / "m.pt2")
    model = load_model(tmp_path / "m.pt2", allow_code=True)
    x = torch.rand(16, 1, 8, 8)
    model.check(x)
    assert model.input_shape == (1, 8, 8)
    assert model.classes == 10
    assert model.sha256 is not None
    assert torch.allclose(model.logits(x), net(x), atol=1e-6)
    assert model.parameters == sum(p.numel() for p in net.parameters())
    assert torch.allclose(model.logits64(x).float(), net(x), atol=1e-5)
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(model.forward(leaf).square().sum(), leaf)
    (wanted,) = torch.autograd.grad(net(leaf).square().sum(), leaf)
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript(tmp_path: Path) -> None:
    net = build(SMALL).eval()
    script = torch.jit.trace(net, torch.rand(2, 1, 8, 8))  # type: ignore[no-untyped-call]
    for name in ("m.pt", "m.ts"):
        script.save(str(tmp_path / name))
        with pytest.raises(BadInput, match="--allow-code"):
            load_model(tmp_path / name)
        model = load_model(tmp_path / name, allow_code=True)
        x = torch.rand(5, 1, 8, 8)
        assert torch.allclose(model.logits(x), net(x), atol=1e-6)
        assert not any(p.requires_grad for p in model.module.parameters())  # type: ignore[union-attr]
    raw = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(BadInput):
        load_model(tmp_path / "cut.pt", allow_code=True)


# ---- the user's own code


def test_users_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_model_module.py").write_text(
        "import torch, torchvision\n"
        "from torch import nn\n"
        "from robustkit import Classifier\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.register_buffer('mean', torch.tensor(0.3))\n"
        "        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "        with torch.no_grad():\n"
        "            for p in self.parameters():\n"
        "                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))\n"
        "    def forward(self, x):\n"
        "        return self.inner((x - self.mean) / 0.2)\n"
        "def make():\n    return Net()\n"
        "net = Net()\n"
        "def wrapped():\n    return Classifier(Net().inner, mean=[0.3], std=[0.2])\n"
        "class Defense:\n    def classifier(self):\n        return wrapped()\n"
        "def plain():\n    return lambda x: Net()(x)\n"
        "def nothing():\n    pass\n"
        "def fails():\n    raise RuntimeError('first line\\nsecond line')\n"
        "def asks(weights):\n    return Net()\n"
        "number = 3\n"
    )
    x = torch.rand(3, 1, 8, 8)
    logits = load_model("own_model_module:make").logits(x)
    for name in ("Net", "net", "wrapped", "Defense", "plain"):
        model = load_model(f"own_model_module:{name}")
        assert isinstance(model, Classifier), name
        assert torch.allclose(model.logits(x), logits, atol=1e-5), name
        assert model.spec == f"own_model_module:{name}"
        assert model.sha256 is not None
        assert len(model.metadata["source_sha256"]) == 64
    assert load_model("own_model_module:make").sha256 == load_model("own_model_module:make").sha256
    cases = {
        "nothing": "returned NoneType",
        "fails": "RuntimeError: first line: it must",
        "asks": "TypeError.*weights",
        "number": "is a int",
        "mkae": "did you mean 'make'",
    }
    for name, words in cases.items():
        with pytest.raises(BadInput, match=words) as caught:
            load_model(f"own_model_module:{name}")
        assert "\n" not in str(caught.value)
    Path("broken_model_module.py").write_text("def f(:\n")
    with pytest.raises(BadInput, match="SyntaxError"):
        load_model("broken_model_module:f")


def test_the_current_folder_cannot_stand_in_for_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    Path("own_first_module.py").write_text("from torch import nn\ndef make():\n    return nn.Flatten()\n")
    load_model("own_first_module:make")
    assert sys.path[0] != str(tmp_path)
    assert sys.path[-1] == str(tmp_path)


def test_modules_and_classifiers_are_taken_as_they_are() -> None:
    net = build(SMALL)
    model = load_model(net)
    assert model.original is net
    assert load_model(model) is model
    with pytest.raises(BadInput, match="unknown device"):
        load_model(net, device="gpu")

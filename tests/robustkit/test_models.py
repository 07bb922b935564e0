"""Models by name: architectures as text, checkpoints, the user's own code, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from robustkit.classifier import Classifier
from robustkit.data import load_data
from robustkit.errors import BadInput, Missing
from robustkit.models import architecture_names, architecture_text, build, load_model, output_shape, save_model, state_digest, zoo_names
from robustkit.models.architecture import skeleton

SMALL = "conv(1,4,3,s2,p1)-relu-flatten-linear(64,10)"


def _saved(folder: Path, **changes: object) -> Path:
    path = folder / "m.safetensors"
    options: dict[str, object] = {"architecture": SMALL, "input_shape": (1, 8, 8), "classes": 10} | changes
    save_model(build(SMALL), path, **options)  # type: ignore[arg-type]
    return path


def _hand_made(folder: Path, tensors: dict[str, Tensor] | None = None, **metadata: str) -> Path:
    path = folder / "h.safetensors"
    given = {"architecture": SMALL, "input": "1x8x8 in [0,1]"} | metadata
    save_file(tensors or build(SMALL).state_dict(), path, metadata={k: v for k, v in given.items() if v})
    return path


# ---- weights trained by others


def test_shared_mnist_weights(shared_data: Path) -> None:
    model = load_model(str(shared_data / "weights" / "mnist-cnn-a-adv.safetensors"))
    x, y = load_data("mnist:n=500", root=shared_data)
    model.check(x, y)
    assert model.input_shape == (1, 28, 28)
    assert model.classes == 10
    assert not model.normalises
    assert int((model.logits(x).argmax(1) == y).sum()) == 482  # 0.964


def test_shared_cifar_weights_normalise_inside(shared_data: Path) -> None:
    model = load_model(shared_data / "weights" / "cifar-cnn-a-adv.safetensors")
    x, y = load_data(f"npz:{shared_data / 'weights' / 'cifar-200.npz'}")
    model.check(x, y)
    assert model.normalises
    assert model.input_shape == (3, 32, 32)
    assert int((model.logits(x).argmax(1) == y).sum()) == 140  # 0.700


# ---- architectures


@pytest.mark.parametrize(
    ("name", "shape", "weights"),
    [
        ("wong-small", (1, 28, 28), 166406),
        ("wong-small", (3, 32, 32), 214918),
        ("digits-cnn", (1, 8, 8), 43050),
        ("mlp", (1, 8, 8), 64 * 256 + 256 + 256 * 256 + 256 + 2570),
        ("mlp:hidden=[20]", (1, 8, 8), 64 * 20 + 20 + 210),
        ("mlp:[]", (1, 8, 8), 650),
        ("resnet-tiny", (3, 32, 32), None),
    ],
)
def test_named_architectures(name: str, shape: tuple[int, int, int], weights: int | None) -> None:
    text = architecture_text(name, shape, 10)
    net = build(text).eval()
    assert net(torch.rand(2, *shape)).shape == (2, 10)
    assert weights is None or sum(p.numel() for p in net.parameters()) == weights
    assert architecture_text(text, shape, 10) == text
    assert output_shape(text, shape) == (10,)


def test_wong_small_is_the_shared_architecture() -> None:
    assert architecture_text("wong-small", (1, 28, 28), 10) == (
        "conv(1,16,4,s2,p1)-relu-conv(16,32,4,s2,p1)-relu-flatten-linear(1568,100)-relu-linear(100,10)"
    )
    assert set(architecture_names()) == {"digits-cnn", "mlp", "resnet-tiny", "wong-small"}


def test_every_layer_computes_what_it_says() -> None:
    text = (
        "conv(2,4,3,s1,p1,nobias)-bn(4)-leakyrelu(0.2)-res(conv(4,4,3,p1)-tanh|)-maxpool(2)-res(conv(4,6,3,s2,p1)|conv(4,6,1,s2))"
        "-sigmoid-avgpool(3,s1,p1)-dropout(0.3)-globalavgpool-flatten-linear(6,3,nobias)"
    )
    net: Any = build(text, seed=3).eval()
    x = torch.rand(2, 2, 8, 8)
    by_hand = nn.functional.leaky_relu(net[1](nn.functional.conv2d(x, net[0].weight, padding=1)), 0.2)
    by_hand = by_hand + torch.tanh(net[3].body[0](by_hand))
    by_hand = nn.functional.max_pool2d(by_hand, 2)
    by_hand = torch.sigmoid(net[5].body(by_hand) + nn.functional.conv2d(by_hand, net[5].shortcut[0].weight, net[5].shortcut[0].bias, 2))
    by_hand = nn.functional.avg_pool2d(by_hand, 3, 1, 1).mean((2, 3)) @ net[11].weight.T
    assert torch.allclose(net(x), by_hand, atol=1e-6)
    assert "5.shortcut.0.weight" in net.state_dict()
    assert net[0].bias is None


def test_building_is_seeded_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = build(SMALL, 1), build(SMALL, 1), build(SMALL, 2)
    skeleton(SMALL)
    assert torch.equal(before, torch.get_rng_state())
    assert state_digest(first) == state_digest(second) != state_digest(other)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("conv(1,4)", "kernel is missing"),
        ("conv(1,4,3,q1)", "unexpected q1"),
        ("conv(1,-4,3)", "above 0"),
        ("conv(1,0,3)", "above 0"),
        ("conv(1,4,3,s0)", "at least s1"),
        ("conv(1,4,3", "parentheses"),
        ("conv(1,4,3))", "parentheses"),
        ("relu)-(flatten", "parentheses"),
        ("rleu", "did you mean 'relu'"),
        ("relu--flatten", "unknown layer"),
        ("", "unknown layer"),
        ("__import__(os)", "unknown layer"),
        ("relu(1)", "unexpected 1"),
        ("leakyrelu(x)", "could not convert"),
        ("dropout(3)", "dropout"),
        ("res(relu)", "BODY|SHORTCUT"),
        ("res(|relu)", "BODY|SHORTCUT"),
        ("linear(999999999,999999999)-linear(4,4)", "does not take images"),
        ("linear(9999999999,2)", "whole number"),
        ("res(" * 20 + "relu" + "|)" * 20, "deeper"),
        ("-".join(["relu"] * 3000), "3000 layers"),
        ("flatten-linear(63,10)", "does not take images"),
    ],
)
def test_malformed_architectures_are_named(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words.replace("|", r"\|")) as caught:
        output_shape(text, (1, 8, 8))
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="conv(1,2)-relu|s linear", max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_architecture_text_is_built_or_refused_in_words(text: str) -> None:
    try:
        net = skeleton(text)
    except BadInput:
        return
    assert len(net) == text.count("-") + 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wong-smal", "did you mean 'wong-small'"),
        ("mlp:hidden=[0]", "at least 1"),
        ("wong-small:x=1", "option"),
        ("flatten-linear(64,3)", "3 outputs"),
    ],
)
def test_unknown_architectures_are_named(name: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        architecture_text(name, (1, 8, 8), 10)


# ---- checkpoints


def test_save_and_load_again(tmp_path: Path) -> None:
    net = build(SMALL, seed=5)
    text = {"recipe": "standard", "seed": "5"}
    sha256 = save_model(
        net, tmp_path / "new" / "m.safetensors", architecture=SMALL, input_shape=(1, 8, 8), classes=10, mean=[0.1], std=[0.3], extra=text
    )
    model = load_model(tmp_path / "new" / "m.safetensors")
    x = torch.rand(4, 1, 8, 8)
    assert torch.allclose(model.logits(x), net((x - 0.1) / 0.3))
    assert model.sha256 == sha256
    assert model.classes == 10
    assert model.input_shape == (1, 8, 8)
    assert model.metadata["recipe"] == "standard"
    assert model.metadata["mean"] == "0.1"
    assert not any(p.requires_grad for p in model.module.parameters())  # type: ignore[union-attr]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["m.safetensors"]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    extra = {letter: letter for letter in "qwertyuiopasdfghjkl"}
    assert len({_saved(tmp_path, extra=extra).read_bytes() for _ in range(5)}) == 1


def test_batch_norm_state_is_kept(tmp_path: Path) -> None:
    text = architecture_text("resnet-tiny", (3, 8, 8), 4)
    net = build(text)
    net(torch.rand(16, 3, 8, 8))
    save_model(net, tmp_path / "r.safetensors", architecture=text, input_shape=(3, 8, 8), classes=4)
    model = load_model(tmp_path / "r.safetensors")
    x = torch.rand(3, 3, 8, 8)
    assert torch.allclose(model.logits(x), net.eval()(x), atol=1e-6)
    assert not model.was_training
    counted = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    path = _hand_made(tmp_path, counted, architecture=text, input="3x8x8 in [0,1]")
    assert torch.allclose(load_model(path).logits(x), net(x), atol=1e-6)


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    half = {k: v.half() for k, v in build(SMALL).state_dict().items()}
    assert load_model(_hand_made(tmp_path, half)).logits(torch.rand(2, 1, 8, 8)).dtype == torch.float32


def test_loading_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    before = torch.get_rng_state()
    load_model(path)
    load_model("torchvision:squeezenet1_1,classes=3")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "arch", ["zoo-arch:mlp:hidden=[5]", "zoo-arch:mlp:channels=1,size=8,classes=10,hidden=[5]", "zoo-arch:mlp,hidden=[5]"]
)
def test_zoo_arch_metadata(tmp_path: Path, arch: str) -> None:
    text = architecture_text("mlp:hidden=[5]", (1, 8, 8), 10)
    net = build(text)
    model = load_model(_hand_made(tmp_path, net.state_dict(), architecture=arch))
    x = torch.rand(2, 1, 8, 8)
    assert torch.allclose(model.logits(x), net(x))
    assert model.classes == 10


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"architecture": ""}, "no `architecture`"),
        ({"architecture": "import os"}, "unknown layer"),
        ({"architecture": "conv(1,4,5,s2,p2)-relu-flatten-linear(64,10)"}, r"0\.weight has shape"),
        ({"architecture": SMALL + "-relu-linear(10,10)"}, r"missing 5\.weight"),
        ({"architecture": "flatten-linear(64,10)"}, r"missing 1\.weight.*unexpected 0\."),
        ({"architecture": "zoo-arch:wong-smal"}, "did you mean"),
        ({"architecture": "zoo-arch:mlp:sise=8"}, "option"),
        ({"input": "8x8"}, "CxHxW"),
        ({"input": "1x8x8 in [0,255]"}, r"in \[0,1\]"),
        ({"input": "3x8x8 in [0,1]"}, "does not take images 3x8x8"),
        ({"classes": "7"}, "10 outputs"),
        ({"classes": "ten"}, "10 outputs"),
        ({"mean": "a"}, "separated by commas"),
        ({"mean": "0.1,0.2,0.3"}, "1 channels"),
        ({"mean": "nan"}, "finite"),
        ({"std": "0"}, "above 0"),
    ],
)
def test_metadata_that_does_not_fit_is_named(tmp_path: Path, metadata: dict[str, str], words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        load_model(_hand_made(tmp_path, None, **metadata))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_files_that_are_no_checkpoint_are_named(tmp_path: Path) -> None:
    good = _saved(tmp_path).read_bytes()
    torch.save(build(SMALL).state_dict(), tmp_path / "weights.pt")
    torch.save(build(SMALL), tmp_path / "whole.pth")
    torch.save(build(SMALL).state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    cases = {
        "page.safetensors": (b"<!DOCTYPE html>\n<html>", "HTML page"),
        "bom.safetensors": (b"\xef\xbb\xbf  <html>", "HTML page"),
        "empty.safetensors": (b"", "empty"),
        "short.safetensors": (good[:-5], "truncated"),
        "shorter.safetensors": (good[:50], "truncated"),
        "tiny.safetensors": (good[:5], "truncated"),
        "noise.safetensors": (b"\x10" + b"noise" * 99, "truncated, damaged"),
        "header.safetensors": ((2).to_bytes(8, "little") + b"{}", "no `architecture`"),
        "huge.safetensors": (b"\0\0\0\0\0\0\0\x7f{}", "truncated, damaged"),
        "pickle.safetensors": ((tmp_path / "old.pt").read_bytes(), "pickle"),
        "weights.pt": (None, "pickled.*safetensors.torch.save_file"),
        "whole.pth": (None, "pickled.*safetensors.torch.save_file"),
        "old.pt": (None, "pickle.*safetensors.torch.save_file"),
        "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    }
    for name, (content, words) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        for allow_code in (False, True):
            with pytest.raises(BadInput, match=words) as caught:
                load_model(tmp_path / name, allow_code=allow_code)
            assert "\n" not in str(caught.value), name


@pytest.mark.parametrize("size", [0x3C20, 0x4B50, 0x380, 0x480])
def test_header_lengths_that_look_like_other_files(tmp_path: Path, size: int) -> None:
    """The first bytes of these files read " <", "PK" and (twice) the mark of a pickle."""
    raw = _saved(tmp_path).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    padded = size.to_bytes(8, "little") + raw[8 : 8 + length].ljust(size) + raw[8 + length :]
    (tmp_path / "x.safetensors").write_bytes(padded)
    assert load_model(tmp_path / "x.safetensors").classes == 10


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "sprung"),)  # type: ignore[return-value]

    torch.save({"w": Trap()}, tmp_path / "trap.pt")
    for allow_code in (False, True):
        with pytest.raises(BadInput):
            load_model(tmp_path / "trap.pt", allow_code=allow_code)
    assert not (tmp_path / "sprung").exists()


def test_saving_refuses_what_would_not_load(tmp_path: Path) -> None:
    net, path = build(SMALL), tmp_path / "m.safetensors"
    with pytest.raises(BadInput, match="expected"):
        save_model(net, path, architecture=SMALL, input_shape=(1, 8, 8), classes=3)
    with pytest.raises(BadInput, match="unexpected"):
        save_model(net, path, architecture="flatten-linear(64,10)", input_shape=(1, 8, 8), classes=10)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        save_model(net, tmp_path / "file" / "m.safetensors", architecture=SMALL, input_shape=(1, 8, 8), classes=10)


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

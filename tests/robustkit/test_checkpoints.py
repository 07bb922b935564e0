"""Checkpoints: saved and read again, those of others, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_cases import SMALL
from torch import Tensor

from robustkit.data import load_data
from robustkit.errors import BadInput
from robustkit.models import architecture_text, build, load_model, save_model


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
        ({"classes": "ten"}, "expected a whole number"),
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

"""Images in the user's own files: npz archives and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_sets import cifar_tree, saved_npz, small_arrays

from robustkit.data import load_data
from robustkit.errors import BadInput

pytestmark = pytest.mark.usefixtures("no_other_roots")


# ---- npz


def test_npz_layouts_and_names_are_the_same_data(tmp_path: Path) -> None:
    x, y = small_arrays(shape=(3, 8, 8))
    first = load_data(saved_npz(tmp_path / "a.npz", x=x, y=y))
    assert first.shape == (3, 8, 8)
    assert first.eight_bit
    assert first.classes == 3
    assert torch.equal(first.x, torch.from_numpy(x).float() / 255)
    last = load_data(saved_npz(tmp_path / "b.npz", images=x.transpose(0, 2, 3, 1), labels=y))
    assert last.digest == first.digest
    assert torch.equal(last.x, first.x)
    assert last.x.is_contiguous()
    assert torch.equal(last.images(torch.tensor([3, 1])), first.x[[3, 1]])
    split = load_data(saved_npz(tmp_path / "c.npz", x_test=x, y_test=y, x_train=x[:5], y_train=y[:5]))
    assert len(split) == 12
    assert split.origin == "npz/test"
    assert len(load_data(f"npz:{tmp_path / 'c.npz'},split=train")) == 5
    gray = load_data(saved_npz(tmp_path / "d.npz", x=x[:, 0], y=y, class_names=np.array(["cat", "dog", "cow", "owl"])))
    assert gray.shape == (1, 8, 8)
    assert gray.class_names == ("cat", "dog", "cow", "owl")
    floats = load_data(saved_npz(tmp_path / "e.npz", x=x / 255.0, y=y.astype(np.float64)))
    assert not floats.eight_bit
    assert floats.x.dtype == torch.float32
    assert torch.allclose(floats.x, first.x)


def test_npz_paths(tmp_path: Path) -> None:
    x, y = small_arrays()
    plain = saved_npz(tmp_path / "a.npz", x=x, y=y)
    odd = tmp_path / "with, comma=1 (x).npz"
    saved_npz(odd, x=x, y=y)
    for text in (f"npz:{odd}", f'npz:"{odd}",n=12', str(odd), str(tmp_path / "a.npz"), f"{tmp_path / 'a.npz'}:n=12", plain + ",n=12"):
        data = load_data(text)
        assert len(data) == 12, text
        assert load_data(data.spec).digest == data.digest, text
    assert (
        load_data(plain + ",n=3,pick=random,seed=2").index.tolist()
        == load_data(f"{tmp_path / 'a.npz'}:n=3,pick=random,seed=2").index.tolist()
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": np.full((4, 8, 8), np.nan)}, "NaN"),
        ({"x": np.linspace(-1.5, 2, 256).reshape(4, 8, 8)}, r"from -1\.5 to 2.*uint8 0\.\.255"),
        ({"x": np.linspace(0, 255, 256).reshape(4, 8, 8)}, "divide by 255"),
        ({"x": np.full((4, 8, 8), np.inf)}, "inf"),
        ({"x": np.zeros((4, 8, 8), dtype=np.int64)}, "int64"),
        ({"x": np.zeros((4, 8, 8), dtype=bool)}, "bool"),
        ({"x": np.zeros((4, 8, 8), dtype=np.complex64)}, "complex64"),
        ({"x": np.zeros((0, 8, 8)), "y": np.zeros(0, dtype=int)}, "empty"),
        ({"x": np.zeros((4, 64))}, r"shape \(4, 64\)"),
        ({"x": np.zeros((4, 3, 8, 3))}, "second or last"),
        ({"x": np.zeros((4, 5, 8, 7))}, "1 or 3 channels"),
        ({"y": np.array([0, 1, 2])}, "4 images but 3 labels"),
        ({"y": np.array([0, 1, 2, -1])}, "-1"),
        ({"y": np.array([0, 1, 2, 0.5])}, "whole"),
        ({"y": np.array([0, 1, 2, np.nan])}, "whole"),
        ({"y": np.eye(4)}, "one-hot"),
        ({"y": np.array(["a", "b", "c", "d"])}, "numbers"),
        ({"y": np.array([{}, 1, 2, 3], dtype=object)}, "pickled"),
        ({"class_names": np.array(["a"])}, "class_names"),
    ],
)
def test_unsuitable_arrays_are_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    arrays = {"x": np.zeros((4, 8, 8), dtype=np.uint8), "y": np.array([0, 1, 2, 0])} | change
    with pytest.raises(BadInput, match=words) as caught:
        load_data(saved_npz(tmp_path / "a.npz", **arrays))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_unsuitable_files_are_named(tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    x, y = small_arrays()
    saved_npz(good, x=x, y=y)
    raw = good.read_bytes()
    cases = {
        "empty.npz": (b"", "empty"),
        "page.npz": (b"\n<!DOCTYPE html><html>", "HTML"),
        "pickle.npz": (b"\x80\x04K\x01.", "pickle"),
        "noise.npz": (b"what is this", "unknown content"),
        "lfs.npz": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "short.npz": (raw[: len(raw) // 2], "damaged"),
        "flipped.npz": (raw[:200] + bytes(b ^ 255 for b in raw[200:400]) + raw[400:], "damaged"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=words):
            load_data(f"npz:{tmp_path / name}")
    np.save(tmp_path / "single.npy", x)
    with pytest.raises(BadInput, match="single array"):
        load_data(f"npz:{tmp_path / 'single.npy'}")
    with pytest.raises(BadInput, match="expected x and y"):
        load_data(saved_npz(tmp_path / "other.npz", a=x))
    with pytest.raises(BadInput, match="without splits"):
        load_data(f"npz:{good},split=train")
    with pytest.raises(BadInput, match="no split 'train'"):
        load_data(saved_npz(tmp_path / "t.npz", x_test=x, y_test=y), split="train")
    with pytest.raises(BadInput, match="is a folder"):
        load_data(f"npz:{tmp_path}")
    with pytest.raises(BadInput, match="is a file"):
        load_data(f"folder:{good}")


# ---- folders


def _folder(root: Path, mode: str = "RGB", size: tuple[int, int] = (6, 5)) -> None:
    for name, count in (("b", 3), ("a", 1)):
        (root / name / "deeper").mkdir(parents=True)
        for k in range(count):
            Image.new(mode, size, 10 * k if mode == "L" else (k, 2 * k, 200)).save(root / name / "deeper" / f"{k}.png")


def test_image_folder(tmp_path: Path) -> None:
    _folder(tmp_path / "set")
    data = load_data(f"folder:{tmp_path / 'set'}")
    assert data.class_names == ("a", "b")
    assert data.shape == (3, 5, 6)
    assert data.eight_bit
    assert data.index.tolist() == [0, 1, 2, 3]
    assert data.y.tolist() == [0, 1, 1, 1]
    assert (data.x[3, :, 0, 0] * 255).round().tolist() == [2, 4, 200]
    assert load_data(str(tmp_path / "set")).digest == data.digest
    assert load_data(f"{tmp_path / 'set'}:n=2").index.tolist() == [0, 1]
    assert load_data(data.spec).digest == data.digest
    _folder(tmp_path / "gray", "L")
    assert load_data(f"folder:{tmp_path / 'gray'}").shape == (1, 5, 6)
    _folder(tmp_path / "both" / "train")
    _folder(tmp_path / "both" / "test", "L")
    assert load_data(f"folder:{tmp_path / 'both'}").shape == (1, 5, 6)
    assert load_data(f"folder:{tmp_path / 'both'},split=train").shape == (3, 5, 6)


def test_image_folder_index_is_that_of_torchvision(tmp_path: Path) -> None:
    from robustkit.torchvision_compat import torchvision

    tv = torchvision()
    cifar_tree(tmp_path)
    theirs = tv.datasets.ImageFolder(str(tmp_path / "train"), transform=tv.transforms.ToTensor())
    data = load_data("cifar10:split=train,n=7,pick=random", root=tmp_path)
    for position, index in enumerate(data.index.tolist()):
        image, label = theirs[index]
        assert label == data.y[position]
        assert torch.equal(image, data.x[position])


def test_unsuitable_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no images"):
        load_data(f"folder:{tmp_path}")
    _folder(tmp_path / "s")
    with pytest.raises(BadInput, match="leave split= out"):
        load_data(f"folder:{tmp_path / 's'},split=train")
    (tmp_path / "s" / "c").mkdir()
    with pytest.raises(BadInput, match="class folder 'c'"):
        load_data(f"folder:{tmp_path / 's'}")
    (tmp_path / "s" / "c" / "x.png").write_bytes(b"not an image")
    with pytest.raises(BadInput, match=r"x\.png cannot be read"):
        load_data(f"folder:{tmp_path / 's'}")
    Image.new("RGB", (9, 9)).save(tmp_path / "s" / "c" / "x.png")
    with pytest.raises(BadInput, match="9x9 pixels"):
        load_data(f"folder:{tmp_path / 's'}")
    Image.new("I;16", (6, 5)).save(tmp_path / "s" / "c" / "x.png")
    with pytest.raises(BadInput, match="no 8-bit image"):
        load_data(f"folder:{tmp_path / 's'}")

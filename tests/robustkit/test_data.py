"""Data by name: what is loaded, what is recorded, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustkit.data import Data, as_data, check_images, load_data
from robustkit.errors import BadInput, Missing


@pytest.fixture(autouse=True)
def no_other_roots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test says where its data is; the current folder is empty."""
    monkeypatch.delenv("ROBUSTKIT_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def _arrays(n: int = 12, shape: tuple[int, ...] = (8, 8), seed: int = 0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 3


def _npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return f"npz:{path}"


# ---- digits


def test_digits_split_is_fixed_stratified_and_disjoint() -> None:
    whole, train, test = (load_data(f"digits:split={s}") for s in ("all", "train", "test"))
    assert len(whole) == 1797
    assert len(train) + len(test) == 1797
    assert not set(train.index.tolist()) & set(test.index.tolist())
    for label in range(10):
        members = torch.nonzero(whole.y == label)[:, 0]
        assert torch.equal(test.index[test.y == label], members[4::5])
    assert load_data("digits").digest == test.digest
    assert load_data("digits", split="train").digest == train.digest
    assert load_data("digits:split=test", split="train").digest == test.digest


def test_digits_are_sixteenths() -> None:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]

    data = load_data("digits:split=all,n=50")
    assert data.shape == (1, 8, 8)
    assert data.classes == 10
    assert not data.eight_bit
    assert torch.equal(data.x[:, 0].double() * 16, torch.from_numpy(load_digits().images[:50]))


def test_data_unpacks_and_knows_its_indices() -> None:
    data = load_data("digits:n=7")
    x, y = data
    assert x.shape == (7, 1, 8, 8)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(x, data.x)
    assert len(data) == 7
    assert torch.equal(data.images(torch.tensor([6, 0])), x[[6, 0]])
    assert torch.equal(data.images(slice(2, 4)), x[2:4])
    assert torch.equal(data.images(y == y[0]), x[y == y[0]])
    part = data.subset(torch.tensor([5, 1]))
    assert torch.equal(part.index, data.index[[5, 1]])
    assert torch.equal(part.x, x[[5, 1]])
    assert part.sha256 == data.sha256
    assert part.digest != data.digest


@pytest.mark.parametrize("text", ["digits", "digits:n=9", "digits:split=train,n=30,pick=random", "digits:pick=random,seed=3,n=4"])
def test_canonical_specification_loads_the_same_data(text: str) -> None:
    data = load_data(text)
    again = load_data(data.spec)
    assert again.spec == data.spec
    assert again.digest == data.digest
    assert torch.equal(again.x, data.x)


def test_specification_writes_out_the_defaults() -> None:
    assert load_data("digits:n=5").spec == "digits:n=5,split=test,pick=first"
    assert load_data("digits").spec == "digits:n=355,split=test,pick=first"
    assert load_data("digits:pick=random,n=5").spec == "digits:n=5,split=test,pick=random,seed=0"


def test_random_pick_extends_and_depends_on_its_seed_alone() -> None:
    state = torch.get_rng_state()
    small, large = load_data("digits:n=20,pick=random"), load_data("digits:n=200,pick=random")
    assert torch.equal(large.index[:20], small.index)
    assert len(set(large.index.tolist())) == 200
    torch.manual_seed(99)
    assert torch.equal(load_data("digits:n=20,pick=random").index, small.index)
    other = load_data("digits:n=20,pick=random,seed=1")
    assert not torch.equal(other.index, small.index)
    assert not torch.equal(small.index, load_data("digits:n=20").index)
    torch.set_rng_state(state)


def test_loading_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    x, y = _arrays()
    before, numpys = torch.get_rng_state(), str(np.random.get_state())
    load_data("digits:n=5,pick=random")
    load_data(_npz(tmp_path / "a.npz", x=x, y=y))
    assert torch.equal(before, torch.get_rng_state())
    assert numpys == str(np.random.get_state())


# ---- known sets


def test_mnist_is_found_by_root_and_by_variable(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data("mnist:n=500", root=shared_data / "mnist")
    assert data.shape == (1, 28, 28)
    assert data.classes == 10
    assert data.origin == "mnist/test"
    assert data.eight_bit
    assert data.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert data.index.tolist() == list(range(500))
    assert load_data("mnist:n=500", root=shared_data).digest == data.digest
    for variable in (shared_data, shared_data / "mnist"):
        monkeypatch.setenv("ROBUSTKIT_DATA", str(variable))
        assert load_data("mnist:n=500").digest == data.digest
    whole = load_data("mnist")
    assert len(whole) == 10000
    assert whole.sha256 == data.sha256
    assert whole.values.dtype == torch.uint8
    assert torch.equal(whole.images(slice(0, 500)), data.x)
    train = load_data("mnist:split=train,n=3")
    assert train.y.tolist() == [5, 0, 4]
    assert train.sha256 != data.sha256
    assert train.origin == "mnist/train"


def test_absent_data_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTKIT_DATA", str(tmp_path / "variable"))
    for name in ("mnist", "fashion-mnist", "cifar10"):
        with pytest.raises(Missing) as caught:
            load_data(f"{name}:n=5", root=tmp_path / "root")
        assert caught.value.exit_code == 3
        for word in (str(tmp_path / "root"), str(tmp_path / "variable"), ".cache", "download=True", "ROBUSTKIT_DATA"):
            assert word in str(caught.value)


def test_damaged_mnist_is_one_clear_line(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x05abc")
    with pytest.raises(BadInput, match="damaged"):
        load_data("mnist", root=tmp_path)
    (raw / "train-images-idx3-ubyte").unlink()
    with pytest.raises(BadInput, match="incomplete"):
        load_data("mnist", root=tmp_path)


def _cifar_tree(root: Path) -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    random = np.random.default_rng(0)
    for split, each in (("train", 3), ("test", 2)):
        for name in names:
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(each):
                Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{k}.png")


def test_cifar10_as_an_image_folder(tmp_path: Path) -> None:
    _cifar_tree(tmp_path / "cifar10")
    data = load_data("cifar10", root=tmp_path)
    assert len(data) == 20
    assert data.shape == (3, 32, 32)
    assert data.class_names[0] == "airplane"
    assert data.class_names[9] == "truck"
    assert data.y[:10].tolist() == list(range(10))  # balanced from the start
    assert data.index[:3].tolist() == [0, 2, 4]
    assert data.origin == "cifar10-images/test"
    assert "re-encoded" in data.note
    assert len(load_data("cifar10:split=train", root=tmp_path / "cifar10")) == 30
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "cifar10-images.tar.xz").write_bytes(b"x")
    with pytest.raises(Missing, match=r"unpack .*cifar10-images\.tar\.xz"):
        load_data("cifar10", root=tmp_path / "packed")


# ---- npz


def test_npz_layouts_and_names_are_the_same_data(tmp_path: Path) -> None:
    x, y = _arrays(shape=(3, 8, 8))
    first = load_data(_npz(tmp_path / "a.npz", x=x, y=y))
    assert first.shape == (3, 8, 8)
    assert first.eight_bit
    assert first.classes == 3
    assert torch.equal(first.x, torch.from_numpy(x).float() / 255)
    last = load_data(_npz(tmp_path / "b.npz", images=x.transpose(0, 2, 3, 1), labels=y))
    assert last.digest == first.digest
    assert torch.equal(last.x, first.x)
    assert last.x.is_contiguous()
    assert torch.equal(last.images(torch.tensor([3, 1])), first.x[[3, 1]])
    split = load_data(_npz(tmp_path / "c.npz", x_test=x, y_test=y, x_train=x[:5], y_train=y[:5]))
    assert len(split) == 12
    assert split.origin == "npz/test"
    assert len(load_data(f"npz:{tmp_path / 'c.npz'},split=train")) == 5
    gray = load_data(_npz(tmp_path / "d.npz", x=x[:, 0], y=y, class_names=np.array(["cat", "dog", "cow", "owl"])))
    assert gray.shape == (1, 8, 8)
    assert gray.class_names == ("cat", "dog", "cow", "owl")
    floats = load_data(_npz(tmp_path / "e.npz", x=x / 255.0, y=y.astype(np.float64)))
    assert not floats.eight_bit
    assert floats.x.dtype == torch.float32
    assert torch.allclose(floats.x, first.x)


def test_npz_paths(tmp_path: Path) -> None:
    x, y = _arrays()
    plain = _npz(tmp_path / "a.npz", x=x, y=y)
    odd = tmp_path / "with, comma=1 (x).npz"
    _npz(odd, x=x, y=y)
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
        load_data(_npz(tmp_path / "a.npz", **arrays))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_unsuitable_files_are_named(tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    x, y = _arrays()
    _npz(good, x=x, y=y)
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
        load_data(_npz(tmp_path / "other.npz", a=x))
    with pytest.raises(BadInput, match="without splits"):
        load_data(f"npz:{good},split=train")
    with pytest.raises(BadInput, match="no split 'train'"):
        load_data(_npz(tmp_path / "t.npz", x_test=x, y_test=y), split="train")
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
    _cifar_tree(tmp_path)
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


# ---- the user's own


def test_users_callable(tmp_path: Path) -> None:
    Path("own_data_module.py").write_text(
        "import torch\n"
        "def make():\n    return torch.linspace(0, 1, 4 * 64).view(4, 1, 8, 8), [0, 1, 1, 0]\n"
        "def wrong():\n    return 3\n"
        "def fails():\n    raise KeyError('lost')\n"
        "def leaves():\n    raise SystemExit(0)\n"
        "def outside():\n    return torch.ones(2, 1, 8, 8) * 7, [0, 1]\n"
    )
    data = load_data("own_data_module:make")
    assert data.shape == (1, 8, 8)
    assert data.y.tolist() == [0, 1, 1, 0]
    assert data.classes == 2
    assert len(load_data("own_data_module:make,n=2")) == 2
    assert load_data(data.spec).digest == data.digest
    cases = {
        "wrong": "returned int",
        "fails": "KeyError: 'lost'",
        "leaves": "SystemExit",
        "outside": "from 7 to 7",
        "mkae": "did you mean 'make'",
    }
    for name, words in cases.items():
        with pytest.raises(BadInput, match=words):
            load_data(f"own_data_module:{name}")
    with pytest.raises(BadInput, match="no module"):
        load_data("no_such_module_here:make")
    Path("broken_data_module.py").write_text("import nothing_like_this\n")
    with pytest.raises(BadInput, match="ModuleNotFoundError"):
        load_data("broken_data_module:make")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mnits", "did you mean 'mnist'"),
        ("digit:n=5", "did you mean 'digits'"),
        ("digits:n=0", "at least one"),
        ("digits:n=-3", "at least one"),
        ("digits:n=356", "355 samples"),
        ("digits:n=many", "whole number"),
        ("digits:m=5", "option"),
        ("digits:5", "positional"),
        ("digits:split=val", "test, train, all"),
        ("digits:pick=last", "first, random"),
        ("digits:n=5,", "malformed"),
        ("", "malformed"),
        ("npz:", "which one"),
        ("folder", "which one"),
        ("npz:1,2", "one path"),
        ("\0", "unknown data"),
    ],
)
def test_bad_specifications_are_named(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        load_data(text)


@pytest.mark.parametrize("text", ["npz:nothing.npz", "folder:nothing,n=3", "nothing.npz", "some/folder", "npz:" + "x" * 5000])
def test_absent_files_are_missing(text: str) -> None:
    with pytest.raises(Missing, match="there is no"):
        load_data(text)


# ---- arrays passed in Python


def test_check_images_accepts_what_is_meant() -> None:
    x, y = _arrays(shape=(1, 8, 8))
    images, labels = check_images(x, y)
    assert labels is not None
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert torch.equal(images, torch.from_numpy(x).float() / 255)
    same, none = check_images(images)
    assert none is None
    assert torch.equal(same, images)
    assert check_images(images.double().requires_grad_())[0].requires_grad is False
    column = check_images(images, y[:, None])[1]
    assert column is not None
    assert torch.equal(column, labels)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.zeros(2, 64), None, "expected"),
        (torch.zeros(0, 1, 8, 8), None, "empty"),
        (torch.full((1, 1, 2, 2), 1.0001), None, "from 1.0001"),
        (torch.full((1, 1, 2, 2), float("nan")), None, "NaN"),
        (torch.zeros(2, 1, 2, 2), torch.tensor([0]), "2 images but 1"),
        (torch.zeros(2, 1, 2, 2), torch.tensor([0, -1]), "-1"),
        (torch.zeros(2, 1, 2, 2), torch.tensor([0, 1.5]), "whole"),
        ("hello", None, "numbers"),
        ([[1], [1, 2]], None, "numbers"),
    ],
)
def test_check_images_names_what_is_wrong(x: Any, y: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        check_images(x, y)


def test_arrays_in_python_keep_their_channels() -> None:
    data = as_data(torch.rand(3, 2, 5, 4), [0, 1, 4])
    assert isinstance(data, Data)
    assert data.shape == (2, 5, 4)
    assert data.classes == 5
    with pytest.raises(BadInput, match="N,C,H,W"):
        as_data(torch.rand(3, 5, 4), [0, 1, 4])
    assert load_data(data) is data

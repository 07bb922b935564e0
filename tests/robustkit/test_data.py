"""Data by name: what is loaded, what is recorded, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_sets import cifar_tree, saved_npz, small_arrays

from robustkit.data import Data, as_data, check_images, load_data
from robustkit.errors import BadInput, Missing

pytestmark = pytest.mark.usefixtures("no_other_roots")


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
    x, y = small_arrays()
    before, numpys = torch.get_rng_state(), str(np.random.get_state())
    load_data("digits:n=5,pick=random")
    load_data(saved_npz(tmp_path / "a.npz", x=x, y=y))
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


def test_cifar10_as_an_image_folder(tmp_path: Path) -> None:
    cifar_tree(tmp_path / "cifar10")
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
    x, y = small_arrays(shape=(1, 8, 8))
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

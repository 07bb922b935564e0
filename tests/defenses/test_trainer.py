"""The trainer: the same weights from the same seed, a file that says what made it, clear refusals."""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import robustkit
from robustkit.data import Data, load_data
from robustkit.defenses import Minibatch, Recipe, Standard, train
from robustkit.defenses.checkpoint import Unsaved
from robustkit.defenses.loop import batches, order
from robustkit.defenses.recipe import Objective
from robustkit.errors import BadInput
from robustkit.models.weights import read_checkpoint

Quick = Callable[..., Any]


@dataclass(frozen=True)
class Watched(Standard):
    """Keeps what it was shown; loss `spoiled` (or an exception) at step `at`."""

    at: int = -1
    spoiled: float | BaseException = 1.0

    seen = []  # type: ignore[var-annotated]

    @property
    def spec(self) -> Any:
        return Standard(self.epochs, self.batch, self.lr, self.shift).spec

    def bind(self, network: nn.Module) -> Objective:
        self.seen.clear()

        def loss(batch: Minibatch) -> Tensor:
            self.seen.append(batch)
            found: Tensor = functional.cross_entropy(network(batch.x), batch.y)
            if len(self.seen) - 1 == self.at:
                if isinstance(self.spoiled, BaseException):
                    raise self.spoiled
                return found * self.spoiled
            return found

        return loss


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_seed_gives_the_same_file(quick: Quick) -> None:
    one, two = quick("pgd:eps=0.1,steps=2,epochs=2", "a/model.safetensors"), quick("pgd:eps=0.1,steps=2,epochs=2", "b/model.safetensors")
    assert one.path.read_bytes() == two.path.read_bytes()


def test_another_seed_gives_other_weights(quick: Quick, weights: Callable[..., dict[str, Tensor]]) -> None:
    one, two = quick("standard:epochs=1", "a.safetensors"), quick("standard:epochs=1", "b.safetensors", seed=1)
    assert not any(torch.equal(weights(one)[name], weights(two)[name]) for name in weights(one))


def test_the_order_depends_on_seed_epoch_and_index_only(digits: Data) -> None:
    index = digits.index
    first = order(0, index, 0)
    assert sorted(first.tolist()) == list(range(len(index)))
    assert torch.equal(first, order(0, index, 0))
    assert not torch.equal(first, order(1, index, 0))
    assert not torch.equal(first, order(0, index, 1))
    half = order(0, index[:100], 0)
    assert torch.equal(half, first[first < 100])


def test_every_epoch_shows_every_image_once_in_even_batches(quick: Quick, digits: Data) -> None:
    quick(Watched(epochs=2, batch=100))
    assert [len(b.y) for b in Watched.seen] == [86, 85, 85] * 2
    for epoch in (Watched.seen[:3], Watched.seen[3:]):
        index = torch.cat([b.index for b in epoch])
        assert torch.equal(index.sort().values, digits.index)
        at = torch.searchsorted(digits.index, index)
        assert torch.equal(torch.cat([b.x for b in epoch]), digits.images(at))
        assert torch.equal(torch.cat([b.y for b in epoch]), digits.y[at])
    keys = torch.cat([b.key for b in Watched.seen])
    assert len(torch.unique(keys)) == len(keys)
    assert [b.progress for b in Watched.seen] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


def test_shifted_images_are_what_the_recipe_sees(quick: Quick, digits: Data) -> None:
    quick(Watched(epochs=2, shift=1))
    at = torch.searchsorted(digits.index, Watched.seen[0].index)
    moved = (Watched.seen[0].x != digits.images(at)).flatten(1).any(1).float().mean()
    assert 0.7 < float(moved) < 0.99
    again = {int(i): x for batch in Watched.seen[2:] for i, x in zip(batch.index, batch.x)}
    assert any(not torch.equal(again[int(i)], x) for i, x in zip(Watched.seen[0].index, Watched.seen[0].x))


@pytest.mark.parametrize(("count", "batch", "expected"), [(256, 128, 2), (257, 128, 3), (1, 128, 1), (100, 1, 100)])
def test_number_of_batches(count: int, batch: int, expected: int) -> None:
    assert batches(count, batch) == expected


def test_no_global_generator_is_touched(quick: Quick) -> None:
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # type: ignore[index]
    quick("pgd:eps=0.1,steps=1,epochs=1", arch="flatten-linear(64,16)-relu-dropout(0.5)-linear(16,10)")
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_layers_that_draw_do_not_depend_on_the_global_generator(quick: Quick, weights: Callable[..., dict[str, Tensor]]) -> None:
    arch = "flatten-linear(64,16)-relu-dropout(0.5)-linear(16,10)"
    torch.manual_seed(1)
    one = quick("standard:epochs=2", "a.safetensors", arch=arch)
    torch.manual_seed(2)
    two = quick("standard:epochs=2", "b.safetensors", arch=arch)
    assert same(weights(one), weights(two))


def test_the_file_says_what_made_it(quick: Quick, digits: Data) -> None:
    found = quick("standard:epochs=1,lr=0.01", seed=5)
    meta = read_checkpoint(found.path).metadata
    assert meta == found.metadata
    assert meta["recipe"] == "standard:epochs=1,batch=128,lr=0.01,shift=0"
    assert meta["recipe_version"] == "1"
    assert (meta["data"], meta["data_origin"], meta["data_sha256"]) == (digits.spec, digits.origin, digits.sha256)
    assert meta["trained_digest"] == digits.digest
    assert meta["seed"] == "5"
    assert meta["robustkit"] == robustkit.__version__
    assert meta["environment"] == f"torch {torch.__version__}, cpu, 1 threads"
    assert meta["input"] == "1x8x8 in [0,1]"
    assert meta["classes"] == "10"
    assert meta["architecture"].startswith("conv(1,32,3,s1,p1)-relu")
    assert float(meta["train_loss"]) == found.loss > 0
    seen = set()
    for run in meta["trained_indices"].split(","):
        first, _, last = run.partition("-")
        seen |= set(range(int(first), int(last or first) + 1))
    assert seen == set(digits.index.tolist())


def test_the_command_in_the_file_makes_the_same_weights(quick: Quick, tmp_path: Path) -> None:
    found = quick("pgd:eps=0.1,epochs=1,steps=1", seed=2, arch="mlp:hidden=[16]")
    words = shlex.split(found.metadata["command"])
    assert words[:2] == ["robustkit", "train"]
    options = dict(zip(words[3::2], words[4::2]))
    assert options["--out"] == "model.safetensors"
    out, seed = tmp_path / "again" / options["--out"], int(options["--seed"])
    again = train(words[2], options["--data"], arch=options["--arch"], seed=seed, out=out)
    assert again.path.read_bytes() == found.path.read_bytes()


def test_the_trained_file_is_a_model(quick: Quick, digits: Data) -> None:
    model = quick("standard:epochs=30").classifier("cpu")
    assert float((model(digits.x).argmax(1) == digits.y).float().mean()) > 0.9
    assert not model.was_training


def test_data_is_its_training_split_unless_said(quick: Quick) -> None:
    assert quick("standard:epochs=1", "a.safetensors", data="digits:n=64").metadata["data"] == "digits:n=64,split=train,pick=first"
    assert "split=test" in quick("standard:epochs=1", "b.safetensors", data="digits:n=64,split=test").metadata["data"]


def test_default_architectures(quick: Quick, tmp_path: Path) -> None:
    x, y = torch.rand(8, 1, 28, 28), torch.arange(8) % 2
    np.savez(tmp_path / "set.npz", x=x.numpy(), y=y.numpy())
    found = quick("standard:epochs=1", data=load_data(f"npz:{tmp_path / 'set.npz'}"))
    assert found.metadata["architecture"].startswith("conv(1,16,4,s2,p1)-relu-conv(16,32,4,s2,p1)")


def test_a_finished_file_is_not_trained_again(quick: Quick) -> None:
    first = quick("standard:epochs=2")
    stamp = first.path.stat().st_mtime_ns
    again = quick("standard:epochs=2")
    assert (first.resumed, first.steps, again.resumed, again.steps) == (0, 4, 4, 4)
    assert again.metadata == first.metadata
    assert first.path.stat().st_mtime_ns == stamp
    assert str(again) == str(first.path)


def test_a_finished_file_of_another_training_is_refused(quick: Quick) -> None:
    first = quick("standard:epochs=1")
    before = first.path.read_bytes()
    with pytest.raises(BadInput, match=r"belongs to another training \(recipe is standard:epochs=1.* there, .*; seed is 0 there, 4 here\)"):
        quick("standard:epochs=2", seed=4)
    assert first.path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"<html>", b"whatever that is"])
def test_a_foreign_file_is_never_overwritten(quick: Quick, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(BadInput, match=r"model\.safetensors"):
        quick("standard:epochs=1")
    assert (tmp_path / "model.safetensors").read_bytes() == content


def test_a_loss_that_is_not_finite_ends_the_training_in_one_line(quick: Quick, tmp_path: Path) -> None:
    says = r"training ran away at step 3: the loss is nan: lower the learning rate, for example lr=0\.001"
    with pytest.raises(BadInput, match=says) as caught:
        quick(Watched(epochs=4, at=3, spoiled=float("nan")), save_every=0)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.safetensors").exists()
    kept = read_checkpoint(tmp_path / "model.safetensors.checkpoint")
    assert kept.metadata["step"] == "3"
    assert all(bool(torch.isfinite(value).all()) for value in kept.tensors.values())
    assert quick("standard:epochs=4").resumed == 3


def test_weights_that_are_not_finite_are_never_saved(quick: Quick, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Exploding(Standard):
        """A finite loss whose gradient is not: sqrt at 0."""

        def bind(self, network: nn.Module) -> Objective:
            return lambda batch: (network(batch.x) * 0).sum().sqrt()

    with pytest.raises(BadInput, match="ran away at step 1: the weights are not finite: lower the learning rate"):
        quick(Exploding(epochs=1), save_every=0)
    assert read_checkpoint(tmp_path / "model.safetensors.checkpoint").metadata["step"] == "0"


def test_a_full_disk_leaves_the_last_checkpoint(quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = []

    def full(handle: int) -> None:
        saves.append(handle)
        if len(saves) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("robustkit.core.files.os.fsync", full)
    with pytest.raises(Unsaved, match="No space left on device: make room; the same command goes on") as caught:
        quick("standard:epochs=2", save_every=0)
    assert caught.value.exit_code == 4
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "model.safetensors.checkpoint").metadata["step"] == "1"
    assert quick("standard:epochs=2").resumed == 1


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("model.pt", "expected a file that ends in .safetensors"),
        ("folder.safetensors", "is a folder"),
        ("file/model.safetensors", "folder cannot be made"),
    ],
)
def test_impossible_outputs(tmp_path: Path, digits: Data, out: str, says: str) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=says):
        train("standard", digits, out=tmp_path / out)


def test_empty_data_is_refused(digits: Data, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="empty"):
        train("standard", digits.subset(slice(0, 0)), out=tmp_path / "model.safetensors")


def test_recipes_of_users_run_in_the_same_loop(quick: Quick, digits: Data) -> None:
    @dataclass(frozen=True)
    class Smoothed(Recipe):
        share: float = 0.1
        name = "smoothed"

        def bind(self, network: nn.Module) -> Objective:
            return lambda batch: functional.cross_entropy(network(batch.x), batch.y, label_smoothing=self.share)

    found = quick(Smoothed(epochs=2))
    assert found.metadata["recipe"] == "smoothed:epochs=2,batch=128,lr=0.005,shift=0,share=0.1"

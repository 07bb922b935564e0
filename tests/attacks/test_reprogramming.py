"""Programs: bounds, untouched images, a task that only the frame can decide, files that load again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.attacks.counting_squares import counting_squares
from robustkit.attacks.reprogramming import Program, Reprogramming, random_twin
from robustkit.attacks.reprogramming_study import held_back, load_program, reprogram
from robustkit.classifier import Classifier
from robustkit.data import Data, as_data
from robustkit.errors import BadInput
from robustkit.models import build, save_model, state_digest

VICTIM = "conv(1,8,3,s2,p1)-relu-flatten-linear(200,32)-relu-linear(32,4)"


def bright_or_dark(count: int = 120) -> Data:
    """3 x 3 images of two classes: below and above middle grey."""
    keys = streams.row_keys(0, "task", torch.arange(count))
    y = streams.integers(keys, 2)
    x = 0.1 + 0.3 * streams.uniform(keys, (1, 3, 3)) + 0.5 * y[:, None, None, None]
    return as_data(x, y)


@pytest.fixture(scope="module")
def victim() -> Classifier:
    """A network that tells in which quarter of a 10 x 10 image a bright square lies."""
    net = build(VICTIM, seed=3)
    keys = streams.row_keys(1, "quarters", torch.arange(600))
    y = streams.integers(keys, 4)
    x = 0.3 * streams.uniform(streams.child(keys, 1), (1, 10, 10))
    for quarter in range(4):
        x[y == quarter, :, 5 * (quarter // 2) : 5 * (quarter // 2) + 5, 5 * (quarter % 2) : 5 * (quarter % 2) + 5] += 0.5
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(net(x), y))
        optimizer.step()
    assert float((net(x).argmax(1) == y).float().mean()) > 0.98
    return Classifier(net, classes=4, input_shape=(1, 10, 10))


def test_the_image_is_untouched_and_the_frame_within_bounds() -> None:
    weight = 50 * torch.randn(3, 9, 8, generator=torch.Generator().manual_seed(0))
    program = Program(weight, (4, 6), 2, torch.tensor([0, 1]))
    x = torch.rand(5, 3, 2, 3, generator=torch.Generator().manual_seed(1))
    shown = program.apply(x)
    assert shown.shape == (5, 3, 9, 8)
    assert float(shown.min()) >= 0 and float(shown.max()) <= 1
    assert torch.equal(shown[:, :, 2:6, 1:7], x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    around = torch.ones(9, 8, dtype=torch.bool)
    around[2:6, 1:7] = False
    assert torch.equal(shown[:, :, around], shown[:1, :, around].expand(5, -1, -1)), "one program for all images"
    assert torch.allclose(shown[0][:, around], (1 + torch.tanh(weight[:, around])) / 2)
    assert float((Program(torch.zeros(1, 5, 5), (3, 3), 1, torch.tensor([0])).frame - 0.5).abs().max()) == 0


def test_channels_are_matched() -> None:
    grey, colour = torch.rand(2, 1, 2, 2), torch.rand(2, 3, 2, 2)
    three = Program(torch.zeros(3, 4, 4), (2, 2), 1, torch.tensor([0])).apply(grey)
    one = Program(torch.zeros(1, 4, 4), (2, 2), 1, torch.tensor([0])).apply(colour)
    assert torch.equal(three[:, :, 1:3, 1:3], grey.expand(-1, 3, -1, -1))
    assert torch.allclose(one[:, :, 1:3, 1:3], colour.mean(1, keepdim=True))


def test_a_trivial_task_is_learned_and_the_victim_is_left_as_it_was(victim: Classifier) -> None:
    assert isinstance(victim.original, nn.Module)
    task, before = bright_or_dark(), state_digest(victim.original)
    method = Reprogramming(epochs=40, labels=(3, 0))
    blank, program = method.start(victim, task), method.train(victim, task)
    assert float(program.weight[:, program.rows, program.columns].abs().max()) == 0
    assert program.accuracy(victim, task) > 0.95 > 0.8 > blank.accuracy(victim, task)
    assert state_digest(victim.original) == before
    answered = victim.logits(program.apply(task.x))[:, [3, 0]].argmax(1)
    assert torch.equal(program.predict(victim, task.x), answered)
    again = method.train(victim, task)
    assert torch.equal(again.weight, program.weight)
    assert not torch.equal(method.train(victim, task, seed=1).weight, program.weight)


def test_the_penalty_is_that_of_the_paper(victim: Classifier) -> None:
    """One step of Adam from W = 0 has no penalty gradient; many steps under a large one stay near 0."""
    task = bright_or_dark()
    free, held = (Reprogramming(epochs=10, penalty=c).train(victim, task).weight for c in (0.0, 1.0))
    assert float(held.norm()) < 0.2 * float(free.norm())
    one = [Reprogramming(epochs=1, batch=120, penalty=c).train(victim, task).weight for c in (0.0, 1.0)]
    assert torch.allclose(*one)


def test_gradients_are_counted(victim: Classifier) -> None:
    task = bright_or_dark(50)
    forwards, backwards = victim.forwards, victim.backwards
    Reprogramming(epochs=3, batch=20).train(victim, task)
    assert (victim.forwards - forwards, victim.backwards - backwards) == (150, 150)


def test_a_random_twin_has_other_weights_of_the_same_shape(victim: Classifier) -> None:
    twin, same = random_twin(victim, 0), random_twin(victim, 0)
    assert twin is not None and same is not None
    assert isinstance(twin.original, nn.Module) and isinstance(victim.original, nn.Module) and isinstance(same.original, nn.Module)
    assert [p.shape for p in twin.original.parameters()] == [p.shape for p in victim.original.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(twin.original.parameters(), victim.original.parameters()))
    assert state_digest(twin.original) == state_digest(same.original)
    assert random_twin(Classifier(lambda x: x.flatten(1)), 0) is None

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ self.weight.t()

    assert random_twin(Classifier(Bare()), 0) is None, "weights nobody knows how to draw"


@pytest.mark.parametrize("split", ["train", "test"])
def test_counting_squares(split: str) -> None:
    data = counting_squares(300, cell=3, split=split)
    assert data.shape == (1, 12, 12)
    assert data.classes == 10
    corners = data.x[:, 0, ::3, ::3].flatten(1).sum(1)
    assert torch.equal(corners.long() - 1, data.y)
    assert torch.equal(data.x.flatten(1).sum(1), corners * 4)
    assert set(data.y.tolist()) == set(range(10))
    other = counting_squares(300, split="train" if split == "test" else "test")
    assert not torch.equal(other.y, data.y)


def test_what_is_held_back_is_never_trained_on() -> None:
    training, held = held_back("digits:n=300")
    assert (len(training), len(held)) == (300, 355)
    assert not bool(torch.isin(training.index, held.index).any())
    training, held = held_back(bright_or_dark(100))
    assert (len(training), len(held)) == (80, 20)
    assert not bool(torch.isin(training.index, held.index).any())
    training, held = held_back("digits:split=test")
    assert not bool(torch.isin(training.index, held.index).any())
    with pytest.raises(BadInput, match="too few"):
        held_back(bright_or_dark(2).subset(slice(0, 1)))


def test_the_study_writes_what_it_says(victim: Classifier, tmp_path: Path) -> None:
    task = bright_or_dark()
    found = reprogram(victim, task, out=tmp_path / "p.safetensors", settings="reprogramming:epochs=40,labels=[3,0]", progress=False)
    program = load_program(found["program"])
    held = held_back(task)[1]
    assert program.accuracy(victim, held) == found["accuracy"] > 0.9
    assert found["control_accuracy"] is not None and found["task"]["held_back"] == len(held) == 24
    assert found["interval95"][0] < found["accuracy"] <= found["interval95"][1]
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    again = reprogram(
        victim, task, out=tmp_path / "q.safetensors", settings=Reprogramming(epochs=40, labels=(3, 0)), control=False, progress=False
    )
    assert again["control_accuracy"] is None
    assert torch.equal(load_program(again["program"]).weight, program.weight)
    save_model(build(VICTIM), tmp_path / "model.safetensors", architecture=VICTIM, input_shape=(1, 10, 10), classes=4)
    with pytest.raises(BadInput, match="no program"):
        load_program(tmp_path / "model.safetensors")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"settings": "reprogramming:epochs=0"}, "epochs = 0"),
    ({"settings": "reprogramming:lr=0"}, "lr"),
    ({"settings": "reprogramming:penalty=-1"}, "penalty"),
    ({"settings": "reprogramming:scale=4"}, "no room"),
    ({"settings": "reprogramming:labels=[0,0]"}, "all different"),
    ({"settings": "reprogramming:labels=[0,4]"}, "0..3"),
    ({"settings": "reprogramming:epoch=3"}, "did you mean 'epochs'"),
    ({"task": "digits"}, "classes"),
    ({"task": "counting-squares:cell=1"}, "at least 2 pixels"),
    ({"out": "p.bin"}, ".safetensors"),
    ({"model": Classifier(build(VICTIM))}, "what images it takes"),
]


@pytest.mark.parametrize(("change", "says"), BAD, ids=[case[1] for case in BAD])
def test_bad_input(change: dict[str, Any], says: str, victim: Classifier, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": victim, "task": bright_or_dark(), "out": tmp_path / "p.safetensors"} | change
    with pytest.raises(BadInput, match=says):
        reprogram(given.pop("model"), given.pop("task"), **given, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_program_that_runs_away_is_told(victim: Classifier) -> None:
    broken = Classifier(lambda x: x.flatten(1)[:, :4] * torch.nan, classes=4, input_shape=(1, 10, 10))
    with pytest.raises(BadInput, match="lower lr"):
        Reprogramming(epochs=1).train(broken, bright_or_dark())

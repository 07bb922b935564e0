"""The Driver: the same result however rows are batched, in little memory too; what a result says, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args

import pytest
import torch
from small_driven import network, same, samples
from torch import Tensor, nn

from robustkit import registry
from robustkit.attacks.apgd import APGD
from robustkit.attacks.apgd_l1 import APGDL1
from robustkit.attacks.bim import BIM
from robustkit.attacks.fab import FAB
from robustkit.attacks.fgsm import FGSM
from robustkit.attacks.pgd import PGD
from robustkit.attacks.square import Square
from robustkit.batch_size import Work, auto_batch
from robustkit.classifier import Classifier
from robustkit.data import load_data
from robustkit.errors import BadInput
from robustkit.methods import Attack, Result
from robustkit.models import build, load_model
from robustkit.numerics import PAD
from robustkit.threats import L1, L2, Linf, Threat

BATCHES = (1, 7, 64, 256)


CASES: dict[str, tuple[Attack, Threat, dict[str, Any]]] = {
    "pgd": (PGD(steps=6), Linf("0.02"), {}),
    "pgd-restarts": (PGD(steps=4, restarts=3), Linf("0.02"), {}),
    "pgd-l2": (PGD(steps=5, restarts=2, loss="dlr"), L2("0.1"), {}),
    "pgd-never": (PGD(steps=4, restarts=3), Linf("0.02"), {"stop": "never"}),
    "pgd-l2-never": (PGD(steps=4, loss="margin"), L2("0.1"), {"stop": "never"}),
    "pgd-targeted": (PGD(steps=5), Linf("0.1"), {"goal": "targeted:random"}),
    "fgsm": (FGSM(), Linf("0.02"), {}),
    "bim": (BIM(steps=4), Linf("0.02"), {}),
    "apgd": (APGD(steps=12, restarts=2), Linf("0.02"), {}),
    "apgd-targets": (APGD("dlr-targeted", steps=6, restarts=1), Linf("0.02"), {}),
    "apgd-l2-never": (APGD(steps=10, restarts=1), L2("0.1"), {"stop": "never"}),
    "apgd-l1": (APGDL1(steps=12, restarts=2), L1("0.5"), {}),
    "fab-l1": (FAB(steps=6, targets=3), L1("0.5"), {}),
    "square": (Square(queries=20, restarts=2), Linf("0.02"), {}),
    "square-l2-never": (Square(queries=20), L2("0.2"), {"stop": "never"}),
}


@pytest.mark.parametrize("case", CASES)
def test_results_do_not_depend_on_the_batch_size(case: str) -> None:
    attack, threat, options = CASES[case]
    x, y = samples()
    found = {size: attack(network(), x, y, threat=threat, batch_size=size, **options) for size in (*BATCHES, "auto")}
    for size in (*BATCHES, "auto"):
        same(found["auto"], found[size])
    reference = found["auto"]
    if options.get("stop") != "never" and "goal" not in options:
        assert 10 < int(reference.success.sum()) < 75  # many fall and many hold, or little was tested


SHORT = {
    "adef": ("adef:steps=6", "flow:eps=1"),
    "apgd-l1": ("apgd-l1:steps=20,restarts=2", "l1:1"),
    "boundary": ("boundary:queries=80", "l2:0.5"),
    "image-walk": ("image-walk:queries=80", "l2:0.5"),
    "foolbox": ("foolbox:ddn,steps=6", "l2:0.5"),
    "nes": ("nes:queries=120,samples=10", "linf:0.02"),
    "rotation": ("rotation:angles=5,shifts=3", "rotation:angle=30,shift=3"),
    "stadv": ("stadv:steps=6", "flow:eps=1"),
    "transfer": ("transfer:[digits-standard],steps=4", "linf:0.2"),
}
"""Specification and threat of attacks that the first two defaults do not fit."""


@pytest.mark.parametrize("name", sorted(set(registry.table("attack"))))
def test_every_attack_gives_the_same_in_any_batch(name: str) -> None:
    spec, threat = SHORT.get(name, (name, "linf:0.02"))
    attack = registry.make("attack", spec)
    if name not in SHORT:
        shorter = {key: value for key, value in {"steps": 6, "queries": 15, "restarts": 1}.items() if hasattr(attack, key)}
        attack = type(attack)(**{f.name: getattr(attack, f.name) for f in fields(attack)} | shorter)
    x, y = load_data("digits:n=40") if name == "transfer" else samples(40)
    model = load_model("zoo:digits-pgd") if name == "transfer" else network()
    if name in ("envelope", "latent-descent"):  # for models that reconstruct what they see
        x = load_data("digits:n=24").x
        model = build("abs(10,2,8,starts=20,steps=3)", 0).eval()
        y = model(x).argmax(1)
    one, other = (attack(model, x, y, threat=threat, batch_size=size) for size in (1, 256))
    same(one, other)


def test_with_several_threads_the_batch_size_does_not_matter_either() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 256, 10)).eval()
    x = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    y = Classifier(model).logits(x).argmax(1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        one, other = (PGD(steps=2)(model, x, y, threat=L2("0.1"), batch_size=size) for size in (7, 256))
    finally:
        torch.set_num_threads(threads)
    assert 0 < int(one.success.sum()) < 24
    same(one, other)


def test_a_sample_does_not_depend_on_the_others() -> None:
    x, y = samples(60)
    attack = PGD(steps=5, restarts=2)
    whole = attack(network(), x, y, threat=Linf("0.02"), seed=3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    shuffled = attack(network(), x[order], y[order], threat=Linf("0.02"), seed=3, index=order)
    same(Result(*(getattr(whole, f.name)[order] for f in fields(Result))), shuffled)
    first = attack(network(), x[:20], y[:20], threat=Linf("0.02"), seed=3)
    same(Result(*(getattr(whole, f.name)[:20] for f in fields(Result))), first)
    alone = attack(network(), x[41:42], y[41:42], threat=Linf("0.02"), seed=3, index=torch.tensor([41]))
    same(Result(*(getattr(whole, f.name)[41:42] for f in fields(Result))), alone)


def test_the_seed_and_the_index_matter() -> None:
    x, y = samples(40)
    attack = PGD(steps=1)
    one = attack(network(), x, y, threat=Linf("0.02"), stop="never")
    for changed in ({"seed": 1}, {"index": torch.arange(40) + 1}):
        assert not torch.equal(one.parameters, attack(network(), x, y, threat=Linf("0.02"), stop="never", **changed).parameters)


def test_no_global_generator_is_touched() -> None:
    x, y = samples(20)
    for attack in (PGD(steps=2, restarts=2), APGD(steps=3), Square(queries=4)):
        before = torch.get_rng_state()
        attack(network(), x, y, threat=Linf("0.02"))
        assert torch.equal(torch.get_rng_state(), before)


# ---- what a result says


@pytest.mark.parametrize("case", CASES)
def test_what_a_result_says_of_each_sample(case: str) -> None:
    attack, threat, options = CASES[case]
    x, y = samples()
    model = Classifier(network())
    result = attack(model, x, y, threat=threat, **options)
    clean = model.logits(x).argmax(1) == y
    assert not bool((result.success & ~clean).any())
    assert bool((result.size[~clean] == 0).all())
    assert bool((result.queries[~clean] == 0).all())
    assert torch.equal(torch.isfinite(result.size), result.success | ~clean)
    assert torch.equal(result.adversarial, threat.apply(x, result.parameters))
    assert bool(threat.contains(x, result.parameters).all())
    assert torch.equal(result.size[result.success], threat.size(x, result.parameters)[result.success])
    now = model.logits(result.adversarial).argmax(1)
    if "goal" in options:
        assert bool((now != y)[result.success].all())
    else:
        assert bool((now != y)[result.success].all())
        assert bool((result.queries[clean] > 0).all())
    if options.get("stop") != "never":
        untouched = ~result.success
        assert torch.equal(result.adversarial[untouched], x[untouched])


def test_a_targeted_result_hits_the_target() -> None:
    x, y = samples()
    model = Classifier(network())
    result = PGD(steps=20)(model, x, y, threat=Linf("0.3"), goal="targeted:next")
    assert int(result.success.sum()) > 10
    hit = result.success
    assert torch.equal(model.logits(result.adversarial[hit]).argmax(1), (y[hit] + 1) % 5)


def test_arrays_and_eight_bit_images_are_understood() -> None:
    x, y = samples(20)
    eight = (x * 255).round().to(torch.uint8)
    wanted = PGD(steps=3)(network(), eight.float() / 255, y, threat=Linf("0.02"))
    same(PGD(steps=3)(network(), eight, y, threat="linf:0.02"), wanted)
    arrays: tuple[Any, Any] = (eight.numpy(), y.numpy())
    same(PGD(steps=3)(network(), *arrays, threat=Linf("0.02")), wanted)
    same(PGD(steps=3)(network(), eight.float() / 255, y.to(torch.int32), threat=Linf("0.02")), wanted)


# ---- memory


class Small(nn.Module):
    """Raises as CUDA does when more than `most` rows come at once."""

    def __init__(self, most: int, problem: Callable[[], Exception]) -> None:
        super().__init__()
        self.net, self.most, self.problem = network(), most, problem
        self.largest = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Small:
        return self

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise self.problem()
        self.largest = max(self.largest, len(x))
        logits: Tensor = self.net(x)
        return logits


@pytest.mark.parametrize("most", [16, 40, 64])
@pytest.mark.parametrize(
    "problem",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["cuda", "cpu"],
)
def test_out_of_memory_gives_the_same_result(most: int, problem: Callable[[], Exception]) -> None:
    x, y = samples(150)
    attack = PGD(steps=4, restarts=2)
    expected = attack(network(), x, y, threat=Linf("0.02"))
    small = Small(most, problem)
    same(attack(small, x, y, threat=Linf("0.02"), batch_size=160), expected)
    assert small.largest == most // 16 * 16 or small.largest > most // 2


def test_out_of_memory_in_the_middle_of_the_work() -> None:
    """The third gradient fails once: what was begun is begun anew, nothing is lost or counted twice."""
    x, y = samples(150)
    attack = PGD(steps=4, restarts=2)
    expected = attack(network(), x, y, threat=Linf("0.02"))
    calls = Counter[str]()

    class Once(Small):
        def forward(self, x: Tensor) -> Tensor:
            calls["gradient"] += torch.is_grad_enabled()
            if torch.is_grad_enabled() and calls["gradient"] == 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)

    same(attack(Once(10**6, RuntimeError), x, y, threat=Linf("0.02"), batch_size=64), expected)


def test_memory_that_does_not_hold_sixteen_rows_is_an_error() -> None:
    x, y = samples(20)
    with pytest.raises(torch.OutOfMemoryError):
        PGD(steps=2)(Small(8, lambda: torch.OutOfMemoryError("CUDA out of memory")), x, y, threat=Linf("0.02"))
    with pytest.raises(RuntimeError, match="another problem"):
        PGD(steps=2)(Small(8, lambda: RuntimeError("another problem")), x, y, threat=Linf("0.02"), batch_size=8)


# ---- bad input


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 0}, "batch size"),
        ({"batch_size": "many"}, "batch size"),
        ({"batch_size": 2.5}, "batch size"),
        ({"threat": "l7:1"}, "unknown threat"),
        ({"goal": "targeted"}, "unknown goal"),
        ({"stop": "late"}, "stop"),
        ({"y": None}, "labels"),
        ({"y": torch.full((20,), 5)}, "classes 0..4"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, "one label per image"),
        ({"x": torch.zeros(0, 1, 8, 8)}, "empty|no images|0 images"),
        ({"x": torch.full((20, 1, 8, 8), 2.0)}, "values from"),
        ({"x": torch.full((20, 1, 8, 8), torch.nan)}, "NaN"),
        ({"x": torch.zeros(20, 3, 8, 8)}, "fails on images"),
        ({"model": "nothing"}, "no model"),
    ],
    ids=str,
)
def test_bad_input_is_refused(change: dict[str, Any], says: str) -> None:
    x, y = samples(20)
    given: dict[str, Any] = {"model": network(), "x": x, "y": y, "threat": "linf:0.02"} | change
    with pytest.raises(BadInput, match=says):
        PGD(steps=1)(given.pop("model"), given.pop("x"), given.pop("y"), **given)


def test_the_first_batch_fits() -> None:
    for shape in ((1, 8, 8), (3, 224, 224), (3, 2000, 2000)):
        for device in ("cpu", "cuda"):
            rows = [auto_batch(shape, torch.device(device), work) for work in get_args(Work)]
            assert min(rows) == rows[0] >= 16 and all(each % 16 == 0 for each in rows)
            crowds = [auto_batch(shape, torch.device(device), "scores", crowd) for crowd in (1, 2, 64)]
            assert crowds == sorted(crowds, reverse=True) and crowds[2] >= min(crowds[0], 96)
            assert all(each % 16 == 0 for each in crowds)


@pytest.mark.parametrize("count", [330, 500])
def test_parts_of_a_batch_are_multiples_too(count: int) -> None:
    """Kernels choose other reductions for other sizes."""
    sizes: list[int] = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return x.mean((2, 3))

    x, threat = torch.rand(count, 3, 40, 40), "linf:0"
    classifier = Classifier(Counting())
    y = classifier(x).argmax(1)
    sizes.clear()
    Square(queries=3)(classifier, x, y, threat=threat)
    assert {size for size in sizes if size % PAD} == {1}, "nothing but the check of the shape, and near ties asked alone"

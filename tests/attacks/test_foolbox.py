"""Foolbox's attacks against closed forms, against Foolbox itself, and in every order."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

import foolbox
import pytest
import torch
from torch import Tensor, nn

from robustkit import load_data, load_model, registry, streams
from robustkit.attacks import FoolboxAttack
from robustkit.attacks.foolbox_library import drawing, foolbox_class
from robustkit.attacks.foolbox_table import TABLE
from robustkit.classifier import Classifier
from robustkit.cli.listings import describe
from robustkit.errors import BadInput, Missing
from robustkit.threats import load_threat

BUDGETS = {"linf": "linf:0.6", "l2": "l2:3.5", "l1": "l1:25", "l0": "l0:25"}
FEW: dict[str, dict[str, Any]] = {
    "carlini-wagner": {"binary_search_steps": 2, "steps": 20, "initial_const": 10, "stepsize": 0.1},
    "ddn": {"steps": 20},
    "fmn": {"steps": 20},
    "ead": {"binary_search_steps": 3, "steps": 20, "initial_const": 10, "initial_stepsize": 0.1},
    "newton-fool": {"steps": 10},
    "brendel-bethge": {"steps": 10, "init_attack": "blended-noise"},
    "gen-attack": {"steps": 10},
    "boundary": {"steps": 30, "init_attack": "blended-noise"},
    "hopskipjump": {"steps": 2},
    "pointwise": {"init_attack": "blended-noise", "l2_binary_search": False},
    "salt-and-pepper": {"steps": 100},
    "blended-noise": {"steps": 50},
    "linear-contrast": {"steps": 50},
    "gaussian-blur": {"steps": 50},
}
RARELY = {"newton-fool", "contrast", "linear-contrast", "fixed-contrast", "gaussian-blur"}
"""These need not break anything of eight digits."""
FEW_STEPS = {name: FEW.get(name, {}) for name in TABLE}
BETHGE = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
CASES = [
    pytest.param(name, family, marks=BETHGE if name == "brendel-bethge" else (), id=f"{name}-{family}")
    for name, entry in TABLE.items()
    for family in entry.classes
]


def attack_of(name: str) -> FoolboxAttack:
    return FoolboxAttack(name, **FEW_STEPS[name])


def test_every_class_of_foolbox_has_a_name_or_a_reason() -> None:
    known = {foolbox_class(one).__name__ for entry in TABLE.values() for one in entry.classes.values()}
    shipped = {
        kind.__name__
        for _, kind in inspect.getmembers(foolbox.attacks, inspect.isclass)
        if issubclass(kind, foolbox.attacks.base.Attack) and not inspect.isabstract(kind)
    }
    assert shipped - known == {"DatasetAttack", "BinarizationRefinementAttack", "SpatialAttack"}
    for name, entry in TABLE.items():
        for family, one in entry.classes.items():
            assert issubclass(foolbox_class(one), foolbox.attacks.base.MinimizationAttack) is entry.minimum, name
            if not hasattr(foolbox_class(one), "_distance") and name not in ("hopskipjump", "salt-and-pepper"):
                distance = foolbox_class(one).__dict__.get("distance") or getattr(foolbox_class(one), "distance", None)
                if isinstance(distance, foolbox.distances.LpDistance):
                    assert distance is getattr(foolbox.distances, family), name


@pytest.fixture(scope="module")
def subject(digits_models: dict[str, str]) -> tuple[Classifier, Tensor, Tensor]:
    """A small digits model and eight digits that it knows."""
    model = load_model(digits_models["standard"])
    x, y = load_data("digits:n=40")
    right = (model.logits(x).argmax(1) == y).nonzero()[:8, 0]
    return model, x[right], y[right]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_runs_alike_in_any_company(name: str, family: str, subject: tuple[Classifier, Tensor, Tensor]) -> None:
    model, x, y = subject
    attack, threat = attack_of(name), load_threat(BUDGETS[family])
    found = attack(model, x, y, threat=threat)
    assert bool(found.success.any()) or name in RARELY
    hit = found.success
    assert bool(threat.contains(x[hit], found.parameters[hit]).all())
    assert bool((model.logits(found.adversarial[hit]).argmax(1) != y[hit]).all())
    assert bool((found.queries >= 1).all())
    follows = attack.access == "gradient" and name != "brendel-bethge"  # whose starting points already lie within the budget
    assert bool((found.gradients > 0).any()) is follows
    some = torch.tensor([6, 1, 3])
    other = attack(model, x[some], y[some], threat=threat, index=some, batch_size=1)
    for field in ("adversarial", "success", "size", "queries", "gradients", "parameters"):
        assert torch.equal(getattr(found, field)[some], getattr(other, field)), field


@pytest.fixture(scope="module")
def plane() -> tuple[Classifier, Tensor, Tensor, Tensor, Tensor]:
    """Two classes split by a plane: model, images well inside the box, labels, normal vector, margins."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    network[1].weight.data = torch.randn(2, 36, generator=generator) / 6
    network[1].bias.data = torch.tensor([0.1, -0.1])
    x = streams.uniform(streams.row_keys(0, "plane", torch.arange(12)), (1, 6, 6)) * 0.4 + 0.3
    model = Classifier(network)
    logits = model.logits(x).double()
    return model, x, logits.argmax(1), network[1].weight.data.double().diff(dim=0)[0], logits.diff(dim=1)[:, 0].abs()


@pytest.mark.parametrize(
    ("attack", "family", "within"),
    [
        (FoolboxAttack("ddn"), "l2", 1.01),
        (FoolboxAttack("fmn"), "l2", 1.02),
        (FoolboxAttack("deepfool"), "l2", 1.03),
        (FoolboxAttack("carlini-wagner", steps=150, binary_search_steps=5, abort_early=False), "l2", 1.05),
        (FoolboxAttack("hopskipjump", steps=8), "l2", 1.05),
        (FoolboxAttack("deepfool"), "linf", 1.03),
        (FoolboxAttack("fmn"), "linf", 1.01),
        (FoolboxAttack("fmn"), "l1", 1.3),
        (FoolboxAttack("ead", steps=100, abort_early=False), "l1", 1.3),
    ],
    ids=lambda v: str(getattr(v, "spec", v)),
)
def test_the_distance_to_a_plane(attack: FoolboxAttack, family: str, within: float, plane: Any) -> None:
    model, x, y, normal, margin = plane
    dual = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}[family]
    exact = margin / torch.linalg.vector_norm(normal, ord=dual)
    found = attack(model, x, y, threat=load_threat(f"{family}:50"), stop="smallest")
    assert bool(found.success.all())
    assert bool((found.size >= exact * (1 - 1e-5)).all()), "nothing is nearer than the plane"
    assert bool((found.size <= exact * within).all()), (found.size / exact).max()


def test_the_repaired_fmn_projects_where_foolboxs_does_not(plane: Any) -> None:
    model, x, y, normal, margin = plane
    exact = margin / torch.linalg.vector_norm(normal)
    native = foolbox.PyTorchModel(model.module, bounds=(0, 1), device="cpu")
    theirs, _, broken = foolbox.attacks.L2FMNAttack()(native, x, y, epsilons=None)
    ratio = ((theirs - x).flatten(1).norm(dim=1).double() / exact)[broken]
    assert float(ratio.max()) > 1.05, "repaired upstream: leave the repair out"


def test_hopskipjumps_estimate_is_foolboxs(plane: Any) -> None:
    model, x, y, _, _ = plane
    for constraint in ("l2", "linf"):
        results = []
        for kind in (foolbox.attacks.HopSkipJumpAttack, foolbox_class("HopSkipJumpAttack")):
            tensor = drawing(torch.tensor([7]))

            def decide(images: Any, tensor: Any = tensor) -> Any:
                return tensor(model.logits(images.raw).argmax(1) != y[0])

            attack, at = kind(constraint=constraint), tensor(x[:1])
            results.append(attack.approximate_gradients(decide, at, 150, tensor(torch.tensor([0.9]))).raw)
        assert torch.allclose(*results, atol=1e-5)
        assert not torch.equal(results[0], torch.zeros_like(results[0]))


def test_ddn_finds_what_foolbox_finds(subject: tuple[Classifier, Tensor, Tensor]) -> None:
    model, x, y = subject
    native = foolbox.PyTorchModel(model.module, bounds=(0, 1), device="cpu")
    theirs, _, broken = foolbox.attacks.DDNAttack(steps=50)(native, x, y, epsilons=None)
    size = (theirs - x).double().flatten(1).norm(dim=1)
    ours = FoolboxAttack("ddn", steps=50)(model, x, y, threat="l2:8", stop="smallest")
    assert bool(broken.all())
    assert torch.allclose(ours.size, size, rtol=1e-3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("foolbox:boundry", "did you mean 'boundary'"),
        ("foolbox:boundary,stps=3", "did you mean 'steps'"),
        ("foolbox:boundary,steps=0", "at least 1"),
        ("foolbox:boundary,steps=many", "a whole number"),
        ("foolbox:boundary,init_attack=pgd", "smallest change"),
        ("foolbox:boundary,init_attack=nonsense", "unknown Foolbox attack"),
        ("foolbox:ead,decision_rule=L2", "EN, L1"),
        ("foolbox:sparse-l1-descent,quantile=3", "quantile"),
        ("foolbox", "robustkit show attack:foolbox"),
        ("foolbox:ddn,tensorboard=x", "unknown option"),
    ],
)
def test_a_mistake_is_explained(text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        registry.make("attack", text)


def test_specifications_come_back() -> None:
    for text in ("foolbox:ddn", "foolbox:boundary,steps=200", "foolbox:boundary,init_attack=(blended-noise:steps=50),steps=9"):
        attack = registry.make("attack", text)
        assert str(attack.spec) == text
        assert registry.make("attack", attack.spec) == attack
    assert FoolboxAttack("boundary", steps=200) == registry.make("attack", "foolbox:boundary,steps=200")
    assert FoolboxAttack("ddn").digest != FoolboxAttack("ddn", steps=50).digest


def test_threats_and_goals_that_do_not_fit(plane: Any) -> None:
    model, x, y, _, _ = plane
    with pytest.raises(BadInput, match="it knows l2"):
        FoolboxAttack("ddn")(model, x, y, threat="linf:0.1")
    with pytest.raises(BadInput, match="cannot aim"):
        FoolboxAttack("deepfool")(model, x, y, threat="l2:1", goal="targeted:next")
    assert bool(FoolboxAttack("ddn")(model, x, y, threat="l2:9", goal="targeted:next").success.all())


def test_fmn_finds_smaller_changes_than_unrepaired_and_hardly_larger_ones_than_ddn(subject: tuple[Classifier, Tensor, Tensor]) -> None:
    model, x, y = subject
    fmn, ddn = (FoolboxAttack(name, steps=60)(model, x, y, threat="l2:8", stop="smallest") for name in ("fmn", "ddn"))
    assert bool(fmn.success.all())
    assert float(fmn.size.mean()) <= 1.1 * float(ddn.size.mean())
    native = foolbox.PyTorchModel(model.module, bounds=(0, 1), device="cpu")
    theirs, _, _ = foolbox.attacks.L2FMNAttack(steps=60)(native, x, y, epsilons=None)
    assert float(fmn.size.mean()) <= 0.9 * float((theirs - x).flatten(1).norm(dim=1).mean())


@pytest.mark.skipif(importlib.util.find_spec("numba") is not None, reason="numba is installed")
def test_a_library_that_foolbox_lacks() -> None:
    with pytest.raises(Missing, match="numba"):
        FoolboxAttack("brendel-bethge")


def test_listings() -> None:
    _, _, rows = describe("attack:foolbox", "")
    assert len(rows) == len(TABLE)
    assert ["ddn", "l2", "gradient", "minimum", "Rony et al. 2019"] in rows
    title, _, rows = describe("attack:foolbox:ddn", "")
    assert "gradient" in title
    assert ["steps", "int", "100"] in rows
    with pytest.raises(BadInput, match="did you mean 'ddn'"):
        describe("attack:foolbox:ddm", "")

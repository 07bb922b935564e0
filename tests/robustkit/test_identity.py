"""Results are never read back for something else: threats, attacks, models and data of the user's own, told by what they do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks.fgsm import FGSM
from robustkit.classifier import Classifier
from robustkit.core.identity import identity
from robustkit.data import load_data
from robustkit.errors import BadInput
from robustkit.methods import Rows, State
from robustkit.models import load_model
from robustkit.threats import L2, Linf, Threat, load_threat

HALF = torch.cat([torch.zeros(1, 4, 8), torch.ones(1, 4, 8)], 1)


class Masked(Linf):
    """Only where the mask is 1."""

    def __init__(self, eps: Any, mask: Tensor) -> None:
        super().__init__(eps)
        object.__setattr__(self, "mask", mask)

    def project(self, x: Tensor, p: Tensor, eps: Tensor) -> Tensor:
        return super().project(x, p * self.mask, eps)  # type: ignore[attr-defined]


def closed_over(mask: Tensor) -> Threat:
    class Inside(Linf):
        def project(self, x: Tensor, p: Tensor, eps: Tensor) -> Tensor:
            return super().project(x, p * mask, eps)

    return Inside("0.1")


def classwide(mask: Tensor) -> Threat:
    class Inside(Linf):
        region = mask

        def project(self, x: Tensor, p: Tensor, eps: Tensor) -> Tensor:
            return super().project(x, p * self.region, eps)

    return Inside("0.1")


@dataclass(frozen=True, init=False)
class Fields(Linf):
    share: float = 0.5

    def __init__(self, eps: Any, share: float = 0.5) -> None:
        super().__init__(eps)
        object.__setattr__(self, "share", share)


@pytest.mark.parametrize("make", [lambda mask: Masked("0.1", mask), closed_over, classwide, lambda mask: Fields("0.1", float(mask.mean()))])
def test_a_threat_of_the_users_own_is_told_by_class_code_and_parameters(make: Callable[[Tensor], Threat]) -> None:
    one, same, other = make(HALF), make(HALF.clone()), make(HALF * 0)
    assert str(one.spec) == str(same.spec) != str(other.spec)
    assert one.family == one.at("0.2").family != other.family
    assert one.family != load_threat("linf:0.1").family
    assert str(one.spec).endswith(str(one.at("0.2").spec).partition(",")[2])
    assert one.name == "linf"


def test_built_in_threats_keep_their_text() -> None:
    assert [str(load_threat(text).spec) for text in ("linf:0.1", "l2:1/3", "l0:4")] == ["linf:0.1", "l2:1/3", "l0:4"]
    assert str(L2("0.5").spec) == "l2:0.5"


def test_another_budget_keeps_what_is_no_field() -> None:
    assert torch.equal(Masked("0.1", HALF).at("0.3").mask, HALF)  # type: ignore[attr-defined]
    assert Fields("0.1", 0.25).at("0.3") == Fields("0.3", 0.25)


def test_a_masked_threat_is_not_read_back_as_the_plain_one(go: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"out": tmp_path / "run", "data": "digits:n=20", "attacks": ["fgsm"], "certifiers": ["none"]}
    masked = go(threat=Masked("0.1", HALF), **options)
    assert np.array_equal(masked.upper, go(threat=Masked("0.1", HALF.clone()), **options).upper)
    for other in ("linf:0.1", Masked("0.1", 1 - HALF), closed_over(HALF)):
        with pytest.raises(BadInput, match="another specification.*threat"):
            go(threat=other, **options)


# ---- models


class Signed(nn.Module):
    def __init__(self, net: nn.Module, sign: float) -> None:
        super().__init__()
        self.net, self.sign = net, sign

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.sign * self.net(x)
        return logits


class Shifted(Signed):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x).roll(1, 1)
        return logits


def test_models_of_the_same_weights_are_told_apart_in_one_folder(go: Any, tmp_path: Path) -> None:
    net: Any = load_model("zoo:digits-ibp").original
    options: dict[str, Any] = {"out": tmp_path / "run", "data": "digits:n=20", "attacks": ["fgsm"], "certifiers": ["none"]}
    assert np.array_equal(go(model=Signed(net, 1.0), **options).upper, go(model=Signed(net, 1.0), **options).upper)
    hooked = Signed(net, 1.0)
    hooked.register_forward_hook(lambda module, inputs, out: -out)
    others = [Signed(net, -1.0), Shifted(net, 1.0), hooked, Classifier(Signed(net, 1.0), mean=[0.5]), lambda x: net(x)]
    for other in others:
        with pytest.raises(BadInput, match="another specification.*model"):
            go(model=other, **options)


def test_data_of_the_same_name_but_other_values_are_told_apart(go: Any, tmp_path: Path) -> None:
    data = load_data("digits:n=20")
    options: dict[str, Any] = {"out": tmp_path / "run", "attacks": ["fgsm"], "certifiers": ["none"]}
    assert np.array_equal(go(data=data, **options).upper, go(data="digits:n=20", **options).upper)
    with pytest.raises(BadInput, match="another specification.*data"):
        go(data=replace(data, y=data.y.flip(0)), **options)
    with pytest.raises(BadInput, match="another specification.*data"):
        go(data=replace(data, values=data.values.flip(0)), **options)


# ---- attacks


def test_an_attack_whose_code_has_changed_runs_again(go: Any, tmp_path: Path) -> None:
    def make(active: bool) -> FGSM:
        class Mine(FGSM):
            name = "mine"

            def step(self, rows: Rows, state: State, view: Any, threat: Threat) -> State:
                return super().step(rows, state, view, threat) if active else state | {"over": torch.ones(len(rows), dtype=torch.bool)}

        return Mine()

    options: dict[str, Any] = {"out": tmp_path / "run", "data": "digits:n=40", "certifiers": ["none"], "threat": "linf:0.15"}
    idle = go(attacks=[make(False)], **options)
    works = go(attacks=[make(True)], **options)
    assert works.summary()["robust_accuracy_at_most"] < idle.summary()["robust_accuracy_at_most"]
    assert np.array_equal(go(attacks=[make(False)], **options).upper, idle.upper)


# ---- the digest itself


def test_an_identity_is_the_same_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom fractions import Fraction\nSCALE = {'a': 1, 'b': (2, Fraction(1, 3))}\n"
        "class A:\n    kinds = {'x', 'y', 'z'}\n    def __init__(self):\n        self.w, self.me = torch.arange(5), self\n"
        "    def f(self, x):\n        return x * SCALE['a'] if x in {'p', 'q', 'r'} else [i for i in x]\n"
        "def g(x, k=3):\n    return A().f(x) + k\n"
    )
    code = "import mine; from robustkit.core.identity import identity; print(identity(mine.A(), mine.g))"
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=_environment(tmp_path), capture_output=True, text=True) for _ in "ab"
    ]
    assert runs[0].stdout == runs[1].stdout != "", runs[0].stderr


def _environment(folder: Path) -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(folder)]), "PYTHONHASHSEED": "random"}


def test_what_changes_the_answer_changes_the_identity() -> None:
    def scaled(by: Any) -> Callable[[Any], Any]:
        return lambda x: by * x

    different = [scaled(1), scaled(2), scaled(torch.ones(2)), scaled(torch.zeros(2)), lambda x: x, lambda x: x + 1, nn.ReLU(), nn.Tanh()]
    different += [nn.LeakyReLU(0.1), nn.LeakyReLU(0.2), nn.Linear(2, 2), scaled({"a": 1}), scaled({"a": 2}), scaled([1]), scaled((1,))]
    assert len({identity(one) for one in different}) == len(different)


def test_a_forward_leaves_the_identity_of_a_network_as_it_is() -> None:
    for name in ("zoo:digits-ibp", "zoo:digits-standard"):
        found = load_model(name)
        before = identity(found.original)
        found(torch.rand(2, 1, 8, 8))
        assert identity(found.original) == before == identity(load_model(name).original)

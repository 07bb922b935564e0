"""Recipes as specifications: what is read, what is refused, what is written back."""

from __future__ import annotations

from fractions import Fraction

import pytest

from robustkit.defenses import TABLE, AdversarialTraining, IntervalTraining, Recipe, Standard, load_recipe
from robustkit.defenses.recipe import typed
from robustkit.errors import BadInput
from robustkit.registry import every


def test_every_recipe_of_the_table_loads_under_its_own_name() -> None:
    found = every("defense")
    assert {name: found[name].name for name in TABLE} == {name: name for name in TABLE}


def test_fields_are_the_hyper_parameters() -> None:
    recipe = load_recipe("pgd:0.1,steps=3,threat=l2,epochs=2,lr=1e-3")
    assert recipe == AdversarialTraining(eps=Fraction(1, 10), steps=3, threat="l2", epochs=2, lr=0.001)
    assert load_recipe("standard") == Standard()
    assert load_recipe(IntervalTraining()) == IntervalTraining()


@pytest.mark.parametrize("text", ["standard", "pgd:eps=8/255,epochs=3", "ibp:eps=0.12,kappa=0.5,lr=0.001", "pgd:threat=l2,eps=1.5"])
def test_the_canonical_and_the_typed_form_name_the_same_recipe(text: str) -> None:
    recipe = load_recipe(text)
    assert load_recipe(str(recipe.spec)) == recipe
    assert load_recipe(str(typed(recipe))) == recipe
    assert len(str(typed(recipe))) <= len(str(recipe.spec))


def test_the_typed_form_holds_only_what_differs() -> None:
    assert str(typed(load_recipe("pgd:eps=0.3,epochs=9,batch=128"))) == "pgd:epochs=9"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pdg", "unknown recipe 'pdg': did you mean 'pgd'"),
        ("pgd:eps=-1", "eps = -1: expected a budget above 0"),
        ("pgd:epsilon=0.1", "did you mean 'eps'"),
        ("pgd:threat=linv", "unknown threat 'linv'"),
        ("pgd:threat=(linf:0.1)", "eps is given twice"),
        ("pgd:steps=0", "steps = 0: expected a whole number of at least 1"),
        ("standard:epochs=0", "epochs = 0: expected a whole number of at least 1"),
        ("standard:epochs=1.5", "expected a whole number"),
        ("standard:lr=0", "lr = 0.0: expected a learning rate above 0"),
        ("standard:batch=0", "batch = 0"),
        ("standard:shift=-1", "shift = -1: expected a whole number of pixels"),
        ("ibp:eps=2", "eps = 2: expected a budget above 0 and at most 1"),
        ("ibp:kappa=1.5", "kappa = 1.5"),
        ("ibp:warmup=0.5,rise=0.4", "rise = 0.4: expected a share above warmup = 0.5"),
        ("ibp:keep=1", "keep = 1.0"),
        ("pgd:steps=", "malformed specification"),
    ],
)
def test_bad_specifications_are_one_clear_line(text: str, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_recipe(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_defense_without_a_recipe_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, "wrapper", "robustkit.classifier:Classifier")
    with pytest.raises(BadInput, match="wrapper is a defense without a training recipe"):
        load_recipe("wrapper")


def test_the_base_has_no_loss_of_its_own() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Recipe()  # type: ignore[abstract]

"""Everything that is promised by name is there, and nothing is loaded before it is asked for."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import robustkit
from robustkit import registry

ROOMS = ["robustkit", "robustkit.attacks", "robustkit.certify", "robustkit.defenses"]
DESIGN = ["load_model", "load_data", "evaluate", "certify", "Evaluation", "Classifier", "Linf", "L2", "Result", "Certificate"]


@pytest.mark.parametrize("name", ROOMS)
def test_every_public_name_loads_and_is_listed(name: str) -> None:
    room = importlib.import_module(name)
    assert len(room.__all__) == len(set(room.__all__)) > 3
    for public in room.__all__:
        assert getattr(room, public) is not None
    assert set(room.__all__) <= set(dir(room))


@pytest.mark.parametrize("name", ROOMS)
def test_an_unknown_name_is_an_attribute_error_that_lists_the_known(name: str) -> None:
    room = importlib.import_module(name)
    with pytest.raises(AttributeError, match=room.__all__[-1]):
        _ = room.no_such_thing
    assert not hasattr(room, "__no_such_dunder__")


@pytest.mark.parametrize("name", ["robustkit", "robustkit.attacks", "robustkit.defenses"])
def test_type_checkers_see_every_lazy_name(name: str) -> None:
    room = importlib.import_module(name)
    tree = ast.parse(Path(room.__file__ or "").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {public for public in room.__all__ if public not in ("TABLE", "__version__")}


@pytest.mark.parametrize("kind", registry.ROOMS)
def test_every_method_of_a_table_loads_under_its_name(kind: str) -> None:
    known = registry.table(kind)
    assert known
    assert set(registry.every(kind)) == set(known)
    for name in known:
        method = registry.find(kind, name)
        assert method.name == name
        assert (method.__doc__ or "").strip()


@pytest.mark.parametrize("name", DESIGN)
def test_what_the_design_names_is_public(name: str) -> None:
    assert name in robustkit.__all__


def test_a_star_import_works() -> None:
    found: dict[str, object] = {}
    exec("from robustkit import *", found)
    assert set(robustkit.__all__) <= set(found)


def test_the_version_is_one_everywhere() -> None:
    from importlib.metadata import PackageNotFoundError, version

    assert robustkit.__version__.count(".") == 2
    try:
        assert version("robustkit") == robustkit.__version__
    except PackageNotFoundError:
        pytest.skip("robustkit is not installed here: run from the checkout")


def test_importing_the_package_is_instant() -> None:
    code = (
        "import sys, robustkit, robustkit.attacks, robustkit.certify\n"
        "sys.exit(','.join(n for n in ('torch', 'numpy', 'scipy', 'sklearn', 'foolbox') if n in sys.modules) or 0)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stderr.strip() == ""
    assert done.returncode == 0


def test_a_broken_plug_in_only_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    table = importlib.import_module("robustkit.attacks").TABLE
    monkeypatch.setitem(table, "gone", "no_such_module_anywhere:Attack")
    with pytest.warns(UserWarning, match="gone.*cannot be loaded"):
        found = registry.every("attack")
    assert "gone" not in found
    assert "pgd" in found
    with pytest.raises(robustkit.BadInput, match="cannot be loaded"):
        registry.make("attack", "gone")

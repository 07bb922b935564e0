"""The room's public names, and the function that bears the same name as the room."""

from __future__ import annotations

import importlib

import pytest

import robustkit.engine


def test_every_public_name_loads() -> None:
    room = importlib.import_module("robustkit.certify")
    for name in room.__all__:
        assert getattr(room, name) is not None
    with pytest.raises(AttributeError, match="no 'nothing'"):
        _ = room.nothing


def test_the_function_certify_is_not_lost_when_the_room_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("robustkit.certify")
    monkeypatch.setattr(robustkit.engine, "certify", lambda *arguments, **options: (arguments, options))
    assert robustkit.certify("model", method="ibp") == (("model",), {"method": "ibp"})

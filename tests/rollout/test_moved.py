"""Old names work for a release, and say where the new ones are."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from rollout.moved import MOVED, MOVED_NAMES

PROJECT = Path(__file__).parents[2]
ROOMS = {old for old in MOVED if (PROJECT / Path(*old.split("."))).is_dir()}


@pytest.mark.parametrize("old", sorted(set(MOVED) - ROOMS))
def test_an_old_module_is_the_new_one(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same object, so that its classes are the same; the warning names the new place."""
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=MOVED[old]):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])


@pytest.mark.parametrize("old", sorted(ROOMS))
def test_a_room_hands_on_the_names_of_the_old_module(old: str) -> None:
    """Where a room has the old module's name."""
    new = importlib.import_module(MOVED[old])
    name = next(name for name, value in vars(new).items() if getattr(value, "__module__", "") == new.__name__)
    with pytest.warns(DeprecationWarning, match=f"{MOVED[old]}.{name}"):
        assert getattr(importlib.import_module(old), name) is getattr(new, name)


def test_a_name_that_never_was_is_an_attribute_error() -> None:
    """A room that forwards is still an honest module."""
    with pytest.raises(ImportError, match="no_such_name"):
        from rollout.codec import no_such_name  # noqa: F401


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in MOVED_NAMES.items() for name in names]
)
def test_a_name_that_left_its_module_is_handed_on(module: str, name: str) -> None:
    """Functions that became methods are named as those."""
    with pytest.warns(DeprecationWarning, match=name):
        assert getattr(importlib.import_module(module), name) is not None

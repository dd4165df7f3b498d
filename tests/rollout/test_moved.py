"""Old names work for a release, and say where the new ones are."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from rollout.moved import MOVED, MOVED_NAMES, places

PROJECT = Path(__file__).parents[2]
ROOMS = {old for old in MOVED if (PROJECT / Path(*old.split("."))).is_dir()}
DIVIDED = {old for old in MOVED if len(places(old)) > 1}


@pytest.mark.parametrize("old", sorted(set(MOVED) - ROOMS - DIVIDED))
def test_an_old_module_is_the_new_one(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same object, so that its classes are the same; the warning names the new place."""
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=places(old)[0]):
        module = importlib.import_module(old)
    assert module is importlib.import_module(places(old)[0])


@pytest.mark.parametrize(("old", "new"), [(old, new) for old in sorted(ROOMS | DIVIDED) for new in places(old)])
def test_names_of_an_old_module_are_handed_on(old: str, new: str) -> None:
    """Where a room has the old module's name, or where its names were divided among several modules."""
    module = importlib.import_module(new)
    name = next(name for name, value in vars(module).items() if getattr(value, "__module__", "") == new)
    with pytest.warns(DeprecationWarning, match=f"{new}.{name}"):
        assert getattr(importlib.import_module(old), name) is getattr(module, name)


def test_a_name_that_never_was_is_an_attribute_error() -> None:
    """A room that forwards is still an honest module."""
    with pytest.raises(ImportError, match="no_such_name"):
        from rollout.codec import no_such_name  # type: ignore[attr-defined]  # noqa: F401


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in MOVED_NAMES.items() for name in names]
)
def test_a_name_that_left_its_module_is_handed_on(module: str, name: str) -> None:
    """Functions that became methods are named as those."""
    with pytest.warns(DeprecationWarning, match=name):
        assert getattr(importlib.import_module(module), name) is not None


def test_modules_of_an_old_package_are_found() -> None:
    """Such as those of `rollout.crew`, which a cluster's launcher took its names from."""
    from rollout.workers import launch

    with warnings.catch_warnings(action="ignore"):  # seen by the tests above, where it is imported first
        from rollout.crew.launch import Channel, Worker  # type: ignore[import-not-found]

    assert (Channel, Worker) == (launch.Channel, launch.Worker)


def test_the_users_own_line_is_warned_of(tmp_path: Path) -> None:
    """Python shows a DeprecationWarning where a script's own line is at fault: it must be that line's."""
    script = tmp_path / "old.py"
    script.write_text(
        "from rollout import samples_of\nfrom rollout.fleet import Fleet\nfrom rollout.store import read_rollouts\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, cwd=tmp_path)
    for line in (1, 2, 3):
        assert done.stderr.count(f"old.py:{line}: DeprecationWarning") == 1

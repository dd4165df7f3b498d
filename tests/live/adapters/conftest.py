"""These tests run in the environments that have the packages (`make adapters`); elsewhere they are not collected.

A server of NeMo Gym's has one by itself: our side of it needs no package, and is tested beside the others.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest

from tests.live.adapters.mcp_kit import JUDGES

#: What a file's tests need here; the others' need what `reasoning_gym` is installed beside.
_NEEDS = {"test_spaces.py": "openenv", "test_verifiers.py": "verifiers"}

#: What warns while it is imported: what compiling other packages' files warns of is theirs to mend.
_WARNING = ("reasoning_gym", "textarena", "verifiers.v1")


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package.partition(".")[0]) is not None


collect_ignore = [
    path.name
    for path in Path(__file__).parent.glob("test_*.py")
    if not _is_there(_NEEDS.get(path.name, "reasoning_gym"))
]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for _package in filter(_is_there, _WARNING):
        importlib.import_module(_package)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where rollouts of tools are played from: it has the judges. Files with others have a folder of their own."""
    (tmp_path / "judges.py").write_text(JUDGES)
    monkeypatch.chdir(tmp_path)
    return tmp_path

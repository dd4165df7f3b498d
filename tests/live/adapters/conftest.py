"""These tests run in the environments that have the packages (`make adapters`); elsewhere they are not collected.

A server of NeMo Gym's has one by itself: our side of it needs no package, and is tested beside the others.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

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

"""Each room says what is in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
ROOMS = sorted({*PROJECT.glob("rollout/**/__init__.py"), *PROJECT.glob("transports/*/__init__.py")})


@pytest.mark.parametrize("init", ROOMS, ids=lambda init: str(init.parent.relative_to(PROJECT)))
def test_a_room_names_its_modules(init: Path) -> None:
    """Whoever opens a folder reads in its `__init__` what each file is for, and none that is gone."""
    said = set(re.findall(r"^ *(\w+)  +\S", init.read_text("utf-8"), re.MULTILINE))
    there = {file.stem for file in init.parent.glob("*.py")} - {"__init__", "__main__"}
    if init.parent.name != "rollout":  # the top's rooms are in docs/architecture.md
        assert there <= said

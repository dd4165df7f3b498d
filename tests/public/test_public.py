"""What users see: a strict type checker accepts what they write, and a change of it is seen."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import rollout
from tests.public.surface import surface
from tests.wheel import PROJECT, build

HERE = Path(__file__).parent

WRONG = """
from rollout import Engine, EngineConfig, Env, Nothing, Step
from rollout.engine import nothing

class Needy(Env):
    def __init__(self, image: str) -> None: ...
    def step(self, message: int) -> Step: return Step()

class Bare(Env): ...

async def train() -> None:
    engine = Engine(EngineConfig(concurency=1), Needy)
    engine.stream([{"n": 1}], evn=Bare)
    engine.stream([3])
    engine.collected(1)
    Bare(3)
"""


def mypy(file: Path) -> list[str]:
    """What a strict type checker says of a file, from a folder of the user's; imports are found as installed."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", file.name]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=600, check=False)
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if "error:" in line]


@pytest.mark.slow
def test_a_strict_type_checker_accepts_what_users_write(tmp_path: Path) -> None:
    """Environments with narrow and with loose tasks, plain and asynchronous, and both loops of a trainer."""
    file = tmp_path / "user_code.py"
    file.write_text((HERE / "user_code.py").read_text("utf-8"), "utf-8")
    assert mypy(file) == []


@pytest.mark.slow
def test_a_strict_type_checker_sees_mistakes(tmp_path: Path) -> None:
    """A name that is not there, an option, an argument, a task, and a method of another shape."""
    file = tmp_path / "wrong.py"
    file.write_text(WRONG, "utf-8")
    found = mypy(file)
    said = [line.partition("error: ")[2] for line in found]
    assert [line.rpartition("[")[2].rstrip("]") for line in said] == [
        "attr-defined",
        "attr-defined",
        "override",
        "call-arg",
        "arg-type",
        "call-arg",
        "list-item",
        "attr-defined",
        "call-arg",
    ]


def test_what_users_write_uses_all_that_there_is() -> None:
    """The file that the type checker judges has every public name in it, and every method of the two engines."""
    text = (HERE / "user_code.py").read_text("utf-8")
    methods = [name for name in vars(rollout.Engine) if not name.startswith("_")]
    assert [name for name in [*rollout.__all__, *methods] if name not in text] == []


def test_the_public_surface_is_as_it_was() -> None:
    """A change that is meant is written down: `python -m tests.public.surface > tests/public/surface.txt`."""
    assert surface() == (HERE / "surface.txt").read_text("utf-8")


@pytest.mark.slow
def test_the_wheel_says_that_it_has_types(tmp_path: Path) -> None:
    """In each of the three packages."""
    assert all((PROJECT / package / "py.typed").is_file() for package in ("rollout", "transports", "envs"))
    with zipfile.ZipFile(build(tmp_path)) as wheel:
        assert {"rollout/py.typed", "transports/py.typed", "envs/py.typed"} <= set(wheel.namelist())

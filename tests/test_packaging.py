"""What pyproject.toml promises to whoever installs this."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rollout
from tests.oldest import PYPROJECT, oldest
from tests.wheel import ALONE, USES, extras

TEXT = PYPROJECT.read_text("utf-8")
PROJECT = tomllib.loads(TEXT)["project"]
PINS = (PYPROJECT.parent / "constraints.txt").read_text("utf-8").splitlines()


def test_every_dependency_has_a_reason() -> None:
    """Beside each of our own dependencies, and each extra's, a comment says what it is for."""
    lists = re.findall(r"^(?:dependencies|\w+) = \[\s.*?^\]", TEXT.partition("[project.scripts]")[0], re.M | re.S)
    named = TEXT.partition("[project.optional-dependencies]")[2].partition("[project.scripts]")[0]
    single = re.findall(r"^\w+ = \[.+\].*$", named, re.M)
    assert [line for line in single if "#" not in line] == []
    lines = [line for text in lists for line in text.splitlines()[1:-1] if line.strip()]
    tools = ("pytest", "hypothesis", "ruff", "mypy")
    assert len(lines) > 20
    assert [line for line in lines if "#" not in line and not line.strip(' "').startswith(tools)] == []


def test_every_dependency_has_a_lowest_version() -> None:
    """`make test-oldest` knows what to install; one without a bound is named."""
    found = oldest(PROJECT)
    assert found["transformers"] == "5.5"
    assert found["pyarrow"] == "16"
    with pytest.raises(ValueError, match=r"'rich' in .* has no lower bound"):
        oldest({"dependencies": ["rich"]})


def test_constraints_pin_every_dependency() -> None:
    """`constraints.txt` has versions only, one for each dependency but torch, whose build depends on the machine."""
    assert [pin for pin in PINS if not re.fullmatch(r"[\w.-]+==[\w.!+-]+", pin)] == []
    pinned = {pin.partition("==")[0].lower().replace("_", "-") for pin in PINS}
    named = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]
    needed = {re.match(r"[\w.-]+", one)[0].lower().replace("_", "-") for one in named}  # type: ignore[index]
    assert needed - pinned <= {"torch", "rollout-engine"}


def test_extras_are_those_that_users_install() -> None:
    """`make wheel` tries every extra of pyproject.toml but those for whoever works on a checkout."""
    assert set(extras()) == set(PROJECT["optional-dependencies"]) - {"dev", "docs"}
    assert set(USES) == {ALONE, *extras()}


def test_the_version_comes_from_one_place() -> None:
    """pyproject.toml has none of its own, and the command says the package's."""
    assert PROJECT["dynamic"] == ["version"]
    command = [str(Path(sys.executable).with_name("rollout")), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"rollout {rollout.__version__}\n"

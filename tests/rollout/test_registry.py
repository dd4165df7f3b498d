"""Environments are found by name, module or file, and their arguments are checked by their types."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from envs.echo import Echo
from rollout.env import Env
from rollout.errors import ConfigError
from rollout.registry import arguments_of, check_packages, env_factory, env_names, find_env, find_transport
from rollout.transport import TransportConfig

FILE = """
from rollout import Env

class Mine(Env):
    def __init__(self, level: int, ratio: float = 0.5, fast: bool = False, note: str | None = None) -> None:
        self.level, self.ratio, self.fast, self.note = level, ratio, fast, note
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return f"{path}:Mine"


def test_bundled_environments_are_found() -> None:
    """Entry points name the three that ship."""
    assert {"echo", "guess_number", "calculator"} <= set(env_names())
    assert find_env("echo") is Echo
    assert find_env("envs.echo:Echo") is Echo


def test_a_file_names_an_environment(mine: str) -> None:
    """`path/to/file.py:Name` is loaded, and text becomes its arguments' types."""
    env: Any = env_factory(mine, {"level": "3", "ratio": "0.25", "fast": "True", "note": "x"})()
    assert (env.level, env.ratio, env.fast, env.note) == (3, 0.25, True, "x")
    assert isinstance(env, Env)


def test_arguments_are_listed_with_their_defaults() -> None:
    """What `rollout envs` shows is the constructor's signature."""
    assert [(a.name, a.type, a.default) for a in arguments_of(Echo)] == [("turns", "int", 8), ("chars", "int", 400)]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("gess_number", "did you mean 'guess_number'"),
        ("envs.echo:Ecco", "did you mean 'Echo'"),
        ("envs.nothing:Echo", "cannot be imported"),
        ("no/such/file.py:Env", "no file"),
        ("rollout.messages:Message", "must be a subclass"),
    ],
)
def test_a_wrong_environment_is_named_with_the_nearest(spec: str, said: str) -> None:
    """Each mistake has its own words."""
    with pytest.raises(ConfigError, match=said):
        find_env(spec)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"level": "1", "rato": "2"}, "did you mean 'ratio'"),
        ({"level": "high"}, "level=high is not a int"),
        ({"level": "1", "fast": "maybe"}, "fast=maybe is not a bool"),
        ({}, "needs -a level=VALUE"),
    ],
)
def test_a_wrong_argument_is_named_with_its_type(mine: str, arguments: dict[str, str], said: str) -> None:
    """An unknown, ill-typed or missing argument is an error that names it."""
    with pytest.raises(ConfigError, match=said):
        env_factory(mine, arguments)


async def test_a_wrong_transport_is_named() -> None:
    """Transports are found by entry point too."""
    transport = await find_transport("scripted")(TransportConfig(options={"replies": []}))
    assert transport.info.dialect == "scripted"
    with pytest.raises(ConfigError, match="did you mean 'dynamo'"):
        find_transport("dynamoo")


def test_our_packages_are_ours() -> None:
    """In an installation of ours the check is silent."""
    check_packages()


def test_a_stranger_in_our_place_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where another distribution has taken an import name, the error names it and the remedy."""
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("")
    original = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        if name != "envs":
            return original(name, package)
        folder = tmp_path / "envs"
        places = [str(folder)]
        return importlib.util.spec_from_file_location("envs", folder / "__init__.py", submodule_search_locations=places)

    monkeypatch.setattr("rollout.registry.importlib.util.find_spec", find)
    monkeypatch.setattr("rollout.registry.packages_distributions", lambda: {"envs": ["rollout-engine", "other-envs"]})
    with pytest.raises(ConfigError, match=r"'envs' does not belong.*'other-envs'.*environment of its own"):
        check_packages()

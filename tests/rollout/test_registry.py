"""Environments are found by name, module or file, and their arguments are checked by their types."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from envs.echo import Echo
from rollout import Engine, EngineConfig, registry
from rollout.chat.messages import Message, user
from rollout.env import Env, Step
from rollout.errors import ConfigError
from rollout.registry import (
    absolute_spec,
    arguments_of,
    check_packages,
    env_factory,
    env_names,
    find_env,
    find_transport,
    is_asynchronous,
    listed_envs,
    made,
)
from rollout.request import Reply, Request
from rollout.transport import ServerInfo, TransportConfig

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


def test_a_files_environment_is_named_for_other_processes_and_directories(
    mine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A relative file is found wherever user code changes the working directory to, and in processes started there."""
    monkeypatch.chdir(tmp_path)
    make_env = pickle.loads(pickle.dumps(env_factory("mine.py:Mine", {"level": 1})))
    monkeypatch.chdir("/")
    assert make_env.spec == mine
    assert make_env().level == 1


def test_types_that_only_a_type_checker_imports_do_no_harm(tmp_path: Path) -> None:
    """The other arguments have theirs."""
    path = tmp_path / "hinted_env.py"
    path.write_text(
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nfrom rollout import Env\n"
        "if TYPE_CHECKING:\n    from somewhere import Tool\n"
        "class E(Env):\n    def __init__(self, level: int, tool: Tool | None = None) -> None:\n"
        "        self.level = level\n"
    )
    env: Any = env_factory(f"{path}:E", {"level": "3"})()
    assert env.level == 3


class Plain(Env):
    """Nothing of it is asynchronous."""


class Waits(Env):
    """It wants a loop when it is made, and has none of its own."""

    def __init__(self, name: str = "") -> None:
        self.loop = asyncio.get_running_loop()

    async def step(self, message: Any) -> Step:
        return Step(done=True)


def test_whether_an_environment_is_asynchronous_is_told_by_its_class() -> None:
    """Through partial functions and names, too; of any other function it is not known."""
    assert not is_asynchronous(Plain)
    assert is_asynchronous(Waits)
    assert is_asynchronous(functools.partial(Waits, name="x"))
    assert not is_asynchronous(lambda: Waits())
    assert not is_asynchronous(env_factory("echo", {}))


def test_an_asynchronous_environment_is_made_on_a_loop() -> None:
    """Also where it is only asked for its tasks."""
    env: Any = made(Waits)
    assert env.loop.is_closed()
    assert isinstance(made(Plain), Plain)


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
        ("rollout.chat.messages:Message", "must be a subclass"),
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


async def test_a_transport_that_is_created_and_connects_later_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point of another distribution may still name `create(config)`, from before opening was one step."""

    class Theirs:
        def __init__(self, config: TransportConfig) -> None:
            self.model = config.model

        async def connect(self) -> ServerInfo:
            return ServerInfo(dialect="theirs", model=self.model or "m")

        async def generate(self, request: Request) -> Reply:
            return Reply(completion_ids=[1], logprobs=[-1.0], message=Message(role="assistant", content="x"))

        async def aclose(self) -> None:
            pass

    def create(config: TransportConfig) -> Theirs:
        return Theirs(config)

    point = EntryPoint("theirs", "theirs:create", "rollout.transports")
    monkeypatch.setattr(EntryPoint, "load", lambda self: create)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    async with Engine(EngineConfig(transport="theirs", model="mine", max_turns=1), Short) as engine:
        assert (engine.server.dialect, engine.server.model) == ("theirs", "mine")
        groups = [group async for group in engine.stream([{"n": 1}])]
    assert groups[0].rollouts[0].ok, groups[0].rollouts[0].failure


class Short(Env):
    """One turn."""

    def reset(self, task: Any) -> list[Message]:
        return [user("hello")]

    def step(self, message: Message) -> Step:
        return Step(done=True)


def test_an_entry_that_lacks_a_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, with our extra where one of ours has it."""

    def missing(name: str) -> Any:
        def load(point: EntryPoint) -> Any:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return load

    monkeypatch.setattr(EntryPoint, "load", missing("uvicorn"))
    with pytest.raises(ConfigError, match=r"needs uvicorn, which is not installed: pip install .rollout-engine\[serve"):
        registry.load_entry("rollout.servers", "embedded")
    monkeypatch.setattr(EntryPoint, "load", missing("theirs.deep"))
    with pytest.raises(ConfigError, match=r"needs theirs, which is not installed$"):
        registry.load_entry("rollout.servers", "embedded")


TINY = """
from rollout import Env, Step, user


class Tiny(Env):
    '''Say what stands after the colon.'''

    def __init__(self, target: str, times: int = 1, **settings: object) -> None:
        self.target, self.times, self.settings = target, times, settings

    @staticmethod
    def absolute_target(target):
        return target.replace("./", "/here/")

    def reset(self, task):
        return [user(self.target)]

    def step(self, message):
        return Step(done=True, reward=float(self.settings.get("reward", 0)), metrics={"length": len(self.target)})
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an installed distribution that has a scheme, and one whose package is missing."""
    site = tmp_path / "site"
    (site / "tiny-1.0.dist-info").mkdir(parents=True)
    (site / "tiny-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
    points = "[rollout.env_schemes]\ntiny = tiny_scheme:Tiny\nlost = tiny_lost:Lost\n"
    (site / "tiny-1.0.dist-info" / "entry_points.txt").write_text(points)
    (site / "tiny_scheme.py").write_text(TINY)
    (site / "tiny_lost.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(site)
    return site


@pytest.mark.parametrize(
    "target", ["x", "file.py:Class", "http://localhost:8000/mcp", "python -m server --at :1", "a:b"]
)
def test_a_scheme_takes_what_follows_the_first_colon(tiny: Path, target: str) -> None:
    """Also where that has colons, or looks like a file's class."""
    env: Any = env_factory(f"tiny:{target}", {"times": "3", "deep.level": "4", "text": "plain", "on": "True"})()
    assert (env.target, env.times) == (target, 3)
    assert env.settings == {"deep.level": 4, "text": "plain", "on": True}


def test_a_scheme_travels_by_name(tiny: Path) -> None:
    """Pickled for another process, with its target as it is from everywhere."""
    env: Any = pickle.loads(pickle.dumps(env_factory("tiny:./rows:train", {})))()
    assert env.target == "/here/rows:train"
    assert absolute_spec("tiny:./rows:train") == "tiny:/here/rows:train"


def test_schemes_are_listed_with_their_settings(tiny: Path) -> None:
    """Without what stands after the colon, which is no setting; one that cannot be loaded hides no other."""
    listed = {entry.name: entry for entry in listed_envs()}
    assert listed["tiny:TARGET"].summary == "Say what stands after the colon."
    assert [argument.name for argument in listed["tiny:TARGET"].arguments] == ["times"]
    assert "no_such_package" in (listed["lost:..."].error or "")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("tinny:x", r"no scheme and no module 'tinny', did you mean 'tiny:x'\?; schemes, as in .* are: .*tiny:"),
        ("reasoninggym:leg_counting", "did you mean 'reasoning-gym:leg_counting'"),
        ("ReasoningGym:leg_counting", "did you mean 'reasoning-gym:leg_counting'"),
        ("ecko", r"no environment or agent 'ecko', did you mean 'echo'\?; there are: .*echo.*; schemes.*tiny:"),
        ("gymnasium", r"did you mean 'gymnasium:\.\.\.'\?"),
        ("http://localhost:8000", "no scheme and no module 'http'"),
        ("tiny:", "names nothing after the colon"),
        ("lost:x", "scheme 'lost' cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ("envs.ekko:Echo", "module 'envs.ekko' cannot be imported"),
    ],
)
def test_a_wrong_scheme_is_one_line(tiny: Path, spec: str, said: str) -> None:
    """It lists what there is; a module's name is judged as before."""
    with pytest.raises(ConfigError, match=said) as raised:
        env_factory(spec, {})
    assert "\n" not in str(raised.value)


def test_a_schemes_target_is_no_setting(tiny: Path) -> None:
    """Nor is its own argument's type open."""
    with pytest.raises(ConfigError, match="has no argument 'target'"):
        env_factory("tiny:x", {"target": "y"})
    with pytest.raises(ConfigError, match="times=many is not a int"):
        env_factory("tiny:x", {"times": "many"})


@pytest.mark.slow
def test_a_scheme_is_played_by_worker_processes(tiny: Path, tmp_path: Path) -> None:
    """`rollout run tiny:x --processes 2`: each looks the scheme up by itself."""
    command = [str(Path(sys.executable).with_name("rollout")), "run", "tiny:abc", "-n", "4", "-a", "reward=2", "--json"]
    done = subprocess.run(
        [*command, "--processes", "2", "--max-tokens", "4"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tiny)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["reward_mean"], result["metrics"]["length"], result["processes"]) == (2.0, 3.0, 2), done.stderr

"""Real processes, from the command line: they end with the engine, whatever ends that."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rollout.store.folder import read_rollouts
from rollout.workers.process import _is_ending
from tests.local_server import serving
from transports.embedded.app import create_app

ROLLOUT = Path(sys.executable).with_name("rollout")


class Hanging:
    """The embedded server, but that token-in requests hang until their client closes them."""

    def __init__(self, requests: int) -> None:
        self.asked, self.left = threading.Semaphore(0), threading.Semaphore(0)
        self._app = create_app()
        self._requests = requests

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sessions = [value for name, value in scope.get("headers", ()) if name == b"x-session-id"]
        if scope.get("path") != "/inference/v1/generate" or sessions in ([], [b"probe"]):
            await self._app(scope, receive, send)
            return
        self.asked.release()
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.release()

    def all_asked(self) -> bool:
        return all(self.asked.acquire(timeout=60) for _ in range(self._requests))

    def all_left(self) -> bool:
        return all(self.left.acquire(timeout=60) for _ in range(self._requests))

    def close(self) -> None:
        self._app.state.engine.close()


@pytest.fixture
def hanging() -> Iterator[tuple[Hanging, str]]:
    app = Hanging(requests=4)
    with serving(app) as url:
        yield app, url
    app.close()


def start(url: str, folder: Path) -> subprocess.Popen[str]:
    args = ["run", "echo", "-n", "4", "--max-tokens", "8", "--base-url", url, "-o", "run", "--json", "--processes", "2"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([ROLLOUT, *args], cwd=folder, start_new_session=True, **pipes)


@pytest.mark.slow
def test_control_c_reaches_the_engine_only(hanging: tuple[Hanging, str], tmp_path: Path) -> None:
    """A terminal sends control-C to all processes: the engine decides, and what was played is kept."""
    app, url = hanging
    process = start(url, tmp_path)
    assert app.all_asked()
    os.killpg(process.pid, signal.SIGINT)
    assert process.stderr is not None
    assert any("control-C again" in line for line in process.stderr)  # a busy machine warns before that
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert app.all_left()
    kept = list(read_rollouts(tmp_path / "run"))
    assert [len(rollout.turns) for rollout in kept] == [1] * 4
    assert {rollout.failure.kind for rollout in kept if rollout.failure} == {"cancelled"}
    assert json.loads(out)["processes"] == 2


@pytest.mark.slow
def test_a_killed_engine_leaves_no_process(hanging: tuple[Hanging, str], tmp_path: Path) -> None:
    """After SIGKILL of the engine its processes close their requests, and end."""
    app, url = hanging
    process = start(url, tmp_path)
    assert app.all_asked()
    process.kill()
    assert app.all_left()
    process.communicate(timeout=300)  # to the end of the pipes, which the processes hold too


@pytest.mark.slow
def test_processes_play_what_one_plays(tmp_path: Path) -> None:
    """`--processes 2` from the command line, with an environment in a file: every rollout, verified, once."""
    (tmp_path / "double.py").write_text(
        "from rollout import Env, Step, user\n\n\n"
        "class Double(Env):\n"
        "    def reset(self, task):\n        return [user('Double 3.')]\n\n"
        "    def step(self, message):\n        return Step(done=True)\n"
    )
    args = ["run", "double.py:Double", "-n", "6", "-r", "2", "--verify", "--processes", "2", "--max-tokens", "4"]
    done = subprocess.run([ROLLOUT, *args, "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert (result["rollouts"], result["failures"], result["turns"]) == (12, 0, 12)
    assert (result["processes"], result["process_deaths"]) == (2, 0)
    members = [(rollout.task_index, rollout.member) for rollout in read_rollouts(tmp_path / result["run_dir"])]
    assert sorted(members) == [(task, member) for task in range(6) for member in range(2)]


@pytest.mark.slow
def test_a_wrong_number_is_named(tmp_path: Path) -> None:
    """No process at all plays nothing: exit status 2, one line, and nothing is started."""
    args = ["run", "echo", "--processes", "0"]
    done = subprocess.run([ROLLOUT, *args], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "rollout: processes must be 1 or more, not 0"


TRAINER = """
import asyncio

from rollout import Engine, EngineConfig, Env, Step, user


class Once(Env):
    def reset(self, task):
        return [user("Hello.")]

    def step(self, message):
        return Step(done=True, reward=1.0)


async def main():
    async with Engine(EngineConfig(max_tokens=4, processes=2), Once) as engine:
        async for group in engine.stream([{"n": n} for n in range(4)]):
            print(group.rewards)
"""


@pytest.mark.slow
def test_a_trainers_script_may_define_the_environment(tmp_path: Path) -> None:
    """An environment of the script itself is found by the processes; a script without a guard is told of it."""
    (tmp_path / "guarded.py").write_text(f'{TRAINER}\n\nif __name__ == "__main__":\n    asyncio.run(main())\n')
    (tmp_path / "unguarded.py").write_text(f"{TRAINER}\n\nasyncio.run(main())\n")
    done, failed = (
        subprocess.run([sys.executable, name], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
        for name in ("guarded.py", "unguarded.py")
    )
    assert done.stdout.splitlines() == ["[1.0]"] * 4, done.stderr
    assert failed.returncode == 1
    assert "__main__" in failed.stderr.splitlines()[-1]


EVALUATES = """
import asyncio, functools

from envs.echo import Echo
from rollout import Engine, EngineConfig, Env, Step, user
from rollout.registry import env_factory

print("run")


class Mine(Env):
    def reset(self, task):
        return [user("Hello.")]

    def step(self, message):
        return Step(done=True, reward=2.0)


async def main():
    filed = env_factory("beside.py:Filed", {"reward": "3"})
    async with Engine(EngineConfig(max_tokens=4, processes=2), functools.partial(Echo, turns=1)) as engine:
        for env in (None, Mine, filed):
            async for group in engine.stream([{"text": "x"}] * 4, env=env):
                print(group.rollouts[0].ok and group.rewards)


if __name__ == "__main__":
    asyncio.run(main())
"""

BESIDE = """
from rollout import Env, Step, user


class Filed(Env):
    def __init__(self, reward: float):
        self.reward = reward

    def reset(self, task):
        return [user("Hello.")]

    async def step(self, message):
        return Step(done=True, reward=self.reward)
"""


@pytest.mark.slow
def test_a_stream_may_play_an_environment_of_the_script_or_of_a_file(tmp_path: Path) -> None:
    """Also where the engine's own is neither: the processes import the script once they need it."""
    (tmp_path / "trainer.py").write_text(EVALUATES)
    (tmp_path / "beside.py").write_text(BESIDE)
    done = subprocess.run(
        [sys.executable, "trainer.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    said = done.stdout.splitlines()
    assert said[:1] == ["run"], done.stderr
    assert said.count("[2.0]") == said.count("[3.0]") == 4, done.stderr
    assert 2 <= said.count("run") <= 3


LEAVING = """
import subprocess
from rollout import Env, user


class Leaving(Env):
    def reset(self, task):
        print(subprocess.Popen(["sleep", "1000"]).pid, flush=True)
        return [user("hi")]
"""


@pytest.mark.slow
def test_what_environments_started_ends_with_a_killed_engine(hanging: tuple[Hanging, str], tmp_path: Path) -> None:
    """Nobody is left to end it but its worker, which does so as its own last act."""
    _, url = hanging
    (tmp_path / "env.py").write_text(LEAVING)
    args = ["run", "env.py:Leaving", "-n", "1", "--base-url", url, "-o", "run", "--processes", "2"]
    with subprocess.Popen(
        [ROLLOUT, *args], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        pid = next(int(line) for line in process.stdout if line.strip().isdigit())
        left = os.pidfd_open(pid)
        process.kill()
        assert select.select([left], [], [], 30)[0], "it is still there"
        os.close(left)


@pytest.mark.skipif(sys.platform != "linux", reason="it is read from /proc")
def test_an_engine_that_is_ending_is_known_before_it_is_gone() -> None:
    """Its connections close first: until it is waited for it still is its workers' parent."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as engine:
        assert not _is_ending(engine.pid)
        engine.kill()
        os.waitid(os.P_PID, engine.pid, os.WEXITED | os.WNOWAIT)
        assert _is_ending(engine.pid)
    assert not _is_ending(engine.pid)


ORPHAN = """
import os, re, signal, sys

from rollout.workers.process import _end_after_parent

if os.fork():
    signal.pause()  # until it is killed
_end_after_parent(signal.SIGHUP)
print(os.getpid(), flush=True)
re.match(r"(a|aa)+$", "a" * 60 + "b")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells a process of its parent's end on Linux only")
def test_a_process_that_hangs_does_not_outlive_a_killed_engine() -> None:
    """Where no Python runs any more the kernel ends it, so many seconds after its parent: here 1, SIGHUP's number."""
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        orphan = os.pidfd_open(int(engine.stdout.readline()))
        engine.kill()
        assert select.select([orphan], [], [], 30)[0], "it is still there"
        os.close(orphan)

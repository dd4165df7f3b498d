"""`openenv:URL`: real OpenEnv servers over their sockets, of the wheel's own template and of its own classes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from envs.adapters.places import NoPlace
from envs.adapters.space import SpaceFailed
from envs.adapters.spaces import OpenEnv
from rollout import Engine, EngineConfig
from rollout.registry import env_factory
from tests.live.adapters.kit import MARKS, play, refused, said, same_tasks
from tests.live.adapters.live_server import free_port, serving
from tests.live.adapters.mcp_kit import calling
from tests.live.adapters.test_many import leave_nothing
from tests.log_kit import capture_logs
from transports.scripted import ScriptedTransport, Stalled, reply

pytestmark = MARKS

SERVER = Path(__file__).with_name("openenv_server.py")


@pytest.fixture(scope="module")
def guess() -> Iterator[str]:
    port = free_port()
    with serving([sys.executable, str(SERVER), "guess", str(port)], port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def basket() -> Iterator[str]:
    """Its actions are calls of tools."""
    port = free_port()
    with serving([sys.executable, str(SERVER), "tools", str(port)], port):
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def opened(url: str, **given: str) -> AsyncIterator[Any]:
    """An environment with what it shares, which is closed whatever happens."""
    async with OpenEnv.setup(url) as common:
        env: Any = env_factory(f"openenv:{url}", given)()
        env.shared = common
        try:
            yield env
        finally:
            await env.close()


async def recorded(url: str, seed: int, actions: list[dict[str, Any]]) -> list[tuple[Any, bool]]:
    """What the package's own client is given for actions."""
    from openenv.core import GenericEnvClient

    async with GenericEnvClient(base_url=url) as client:
        await client.reset(seed=seed)
        results = [await client.step(action) for action in actions]
        return [(result.reward, result.done) for result in results]


def test_64_rollouts_of_the_wheels_own_environment(tmp_path: Path) -> None:
    """What `openenv init` makes: an echo, whose action is a text and whose reward its length."""
    made = "import sys; from openenv.cli.__main__ import main; sys.argv = ['openenv', 'init', 'echo_env']; main()"
    alone = {"PATH": ""}  # it would look for uv, to lock what is not installed here
    subprocess.run([sys.executable, "-c", made], cwd=tmp_path, env=alone, check=True, capture_output=True, timeout=120)
    port = free_port()
    application = ["-m", "uvicorn", "echo_env.server.app:app", "--port", str(port), "--app-dir", str(tmp_path)]
    with serving([sys.executable, *application], port):
        more = ["--max-turns", "2", "-a", "wait_s=120"]
        metrics = play(f"openenv:http://127.0.0.1:{port}", *more, cwd=tmp_path)["metrics"]
    assert metrics["steps"] == 2


def test_64_rollouts_with_tools_from_two_workers(basket: str, tmp_path: Path) -> None:
    """The scheme and its settings travel to them by name."""
    more = ["--max-turns", "3", "--processes", "2"]
    assert "session_wait_s" in play(f"openenv:{basket}", *more, cwd=tmp_path, max_tokens=32)["metrics"]


async def test_rewards_are_the_packages_own(guess: str) -> None:
    """The same guesses through the adapter and through the package's client, of several seeds."""
    guesses = [{"number": number} for number in (50, 25, 75, 99)]
    for seed in range(6):
        expected = await recorded(guess, seed, guesses)
        async with opened(guess) as env:
            await env.reset({"seed": seed})
            steps = [await env.step(said(f"I say ```json\n{json.dumps(each)}\n```")) for each in guesses]
        assert [(step.reward, step.done) for step in steps] == [(reward or 0.0, done) for reward, done in expected]


async def test_what_is_no_action_is_told_and_changes_nothing(guess: str) -> None:
    """Prose, a number out of bounds, another field; three in a row end the episode."""
    async with opened(guess) as env:
        (opening,) = await env.reset({"seed": 1})
        assert opening.text.startswith('{"hint": "Guess a number between 1 and 100.", "left": 4}')
        assert '"maximum": 100' in opening.text
        assert "metadata" not in opening.text
        first = await env.step(said("fifty"))
        assert (first.messages[0].text, first.reward) == ("Please answer with one action as a JSON object.", 0.0)
        second = await env.step(said('{"number": 500}'))
        assert second.messages[0].text == "This is no action: number: 500 is greater than the maximum of 100"
        third = await env.step(said('{"number": 50}'))
        assert '"left": 3' in third.messages[0].text
        steps = [await env.step(said('{"guess": 5}')) for _ in range(3)]
        assert [step.done for step in steps] == [False, False, True]
        assert steps[-1].metrics["invalid"] == 5


async def test_tools_are_the_servers_and_each_call_is_a_step(basket: str) -> None:
    """What a call gives is told; an unknown tool and one that raises are told; the last call brings the reward."""
    async with opened(basket) as env:
        (opening,) = await env.reset({"seed": 1})
        assert opening.text == "Fill the basket with 2 things."
        assert [each["function"]["name"] for each in env.tools] == ["put", "hand_over"]
        assert env.tools[0]["function"]["parameters"]["required"] == ["thing"]
        step = await env.step(calling("put", thing="apple"))
        assert (step.messages[0].text, step.reward, step.done) == ("1 in the basket", 0.0, False)
        assert "no stones" in (await env.step(calling("put", thing="stone"))).messages[0].text
        assert "nothing" in (await env.step(calling("nothing"))).messages[0].text
        await env.step(calling("put", thing="pear"))
        last = await env.step(calling("hand_over"))
        assert (last.reward, last.done, last.metrics["invalid"]) == (1.0, True, 2.0)
    async with opened(basket) as env:
        await env.reset({"seed": 1})
        assert (await env.step(said("I am done."))).done


async def test_functions_of_the_users(guess: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One makes actions of messages, one messages of observations; either may be asynchronous."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def action(message):\n"
        "    if message.text == 'stop':\n        return None\n"
        "    if not message.text.isdigit():\n        raise ValueError('digits, please')\n"
        "    return {'number': int(message.text)}\n"
        "async def observe(observation, first):\n"
        "    return f\"{'first' if first else 'then'}: {observation['hint']}\"\n"
    )
    async with opened(guess, action="mine.py:action", observe="mine.py:observe", system="Be quick.") as env:
        opening = await env.reset({"seed": 1})
        assert [each.text for each in opening] == ["Be quick.", "first: Guess a number between 1 and 100."]
        assert (await env.step(said("hm"))).messages[0].text == "digits, please"
        assert (await env.step(said("50"))).messages[0].text in ("then: higher", "then: lower")
        assert (await env.step(said("500"))).messages[0].text == "The environment does not take this action."
        assert (await env.step(said("stop"))).done


async def test_a_server_that_has_one_session_gives_it_to_one_after_the_other() -> None:
    """All rollouts are played, each by itself; the warning says what to do. One that waits too long fails, and says
    so."""
    port = free_port()
    with serving([sys.executable, str(SERVER), "guess", str(port), "1"], port):
        url = f"http://127.0.0.1:{port}"
        turns = [reply('{"number": 50}'), reply('{"number": 60}'), reply('{"number": 70}'), reply('{"number": 80}')]
        transport = ScriptedTransport(turns * 24)
        with capture_logs() as logs:
            async with Engine(
                EngineConfig(concurrency=24), env_factory(f"openenv:{url}", {}), transport=transport
            ) as engine:
                groups = [group async for group in engine.stream([{"seed": 1}] * 24)]
        assert [group.rollouts[0].failure for group in groups] == [None] * 24
        assert {len(group.rollouts[0].turns) for group in groups} <= {1, 2, 3, 4}
        (warned,) = [entry for entry in logs if entry["event"] == "server_has_no_session_free"]
        assert "1/1 sessions" in warned["said"]
        assert "max_concurrent_envs" in warned["hint"]
        async with opened(url) as first, opened(url, wait_s="0.5") as second:
            await first.reset({"seed": 1})
            with pytest.raises(NoPlace, match=r"no session free for 0.5 s \(wait_s\): .*1/1"):
                await second.reset({"seed": 1})


async def test_a_server_that_breaks_or_goes_is_the_rollouts_failure() -> None:
    """What raises there, a server that is gone between two steps (no other session takes its place), one that hangs."""
    port = free_port()
    command = [sys.executable, str(SERVER), "broken", str(port)]
    url = f"http://127.0.0.1:{port}"
    with serving(command, port) as process:
        async with opened(url) as env:
            await env.reset({"seed": 1})
            with pytest.raises(SpaceFailed, match=r"step failed there \(execution_error\): unlucky"):
                await env.step(said('{"number": 13}'))
        async with opened(url, timeout_s="1.5") as env:
            await env.reset({"seed": 1})
            with pytest.raises(SpaceFailed, match=r"step took longer than 1.5 s \(timeout_s\)"):
                await env.step(said('{"number": 66}'))
        async with opened(url) as env:
            await env.reset({"seed": 1})
            process.kill()
            process.wait()
            with serving(command, port):
                with pytest.raises(SpaceFailed, match="is gone in step"):
                    await env.step(said('{"number": 50}'))
                with pytest.raises(SpaceFailed, match="its episode with it"):
                    await env.step(said('{"number": 50}'))


async def test_sessions_end_with_rollouts_that_are_given_up(guess: str) -> None:
    """At the rollout's deadline, in the middle of a turn: a server of as many sessions as rollouts is free again."""
    port = free_port()
    with serving([sys.executable, str(SERVER), "guess", str(port), "4"], port):
        make = env_factory(f"openenv:http://127.0.0.1:{port}", {"wait_s": "20"})
        config = EngineConfig(concurrency=4, episode_timeout_s=3.0)
        async with Engine(config, make, transport=ScriptedTransport([Stalled()] * 8)) as engine:
            for _ in range(2):
                groups = [group async for group in engine.stream([{"seed": 1}] * 4)]
                assert [group.rollouts[0].ok for group in groups] == [False] * 4


async def test_cancelled_in_its_start(guess: str) -> None:
    """A reset that is given up while the session opens leaves nothing that close does not end."""
    async with opened(guess) as env:
        resetting = asyncio.create_task(env.reset({"seed": 1}))
        await asyncio.sleep(0)
        resetting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await resetting


def test_tasks_are_those_of_the_server_or_seeds(guess: str, tmp_path: Path) -> None:
    """The same for the same seed; of a server that lists them, each at most once."""
    assert set(same_tasks(env_factory(f"openenv:{guess}", {}))[0]) == {"seed"}
    port = free_port()
    with serving([sys.executable, str(SERVER), "dataset", str(port)], port):
        spec = f"openenv:http://127.0.0.1:{port}"
        tasks = same_tasks(env_factory(spec, {}))
        assert {task["split"] for task in tasks} == {"train"}
        test: Any = env_factory(spec, {"split": "test"})()
        assert sorted(task["index"] for task in test.tasks(64, 1)) == [0, 1, 2, 3, 4]
        assert "no split 'dev': -a split= one of train, test" in refused(spec, split="dev")


async def test_256_at_once_leave_nothing(guess: str) -> None:
    """Each has a connection of its own; memory is that of what plays, not of what has played."""
    make = env_factory(f"openenv:{guess}", {"invalid": "1"})
    await leave_nothing(make, "hm", 1, {"seed": 1})


def test_headers_come_from_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are sent with what is asked before, and with the session's connection."""
    monkeypatch.setenv("ROLLOUT_TEST_KEY", "s3cret")
    port = free_port()
    with serving([sys.executable, str(SERVER), "guess", str(port)], port, {**os.environ, "KEY": "s3cret"}):
        spec = f"openenv:http://127.0.0.1:{port}"
        assert "does it want a header" in refused(spec)
        play(spec, "-a", "headers=X-Key: $ROLLOUT_TEST_KEY", "-a", "invalid=1", cwd=tmp_path, n=2, r=1)


def test_mistakes_are_one_line(guess: str) -> None:
    """An address where nobody is or nobody answers, a server of another kind, no address at all."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        told = refused(f"openenv:http://127.0.0.1:{silent.getsockname()[1]}", timeout_s="0.5")
        assert "no server at" in told
        assert "ReadTimeout" in told
    assert "no server at http://127.0.0.1:1" in refused("openenv:http://127.0.0.1:1")
    assert "is no OpenEnv server" in refused(f"openenv:{guess}/docs")
    assert "is no address" in refused("openenv:echo_env")
    assert "must be above 0" in refused(f"openenv:{guess}", invalid="0")
    assert "has no function" in refused(f"openenv:{guess}", action="json:lods")

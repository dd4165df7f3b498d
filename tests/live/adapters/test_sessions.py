"""Sessions with MCP servers that rollouts share, two servers at once, and headers: real servers over stdio and HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from envs.adapters.sessions import ServerFailed
from envs.adapters.tools import Mcp
from rollout import Engine, EngineConfig
from rollout.registry import env_factory
from tests.live.adapters.kit import MARKS, is_there, play, refused
from tests.live.adapters.mcp_kit import calling, first_tool, http_server, opened, stdio
from tests.live.adapters.test_many import leave_nothing
from transports.scripted import ScriptedTransport, reply

pytestmark = MARKS


@pytest.fixture
async def common(folder: Path) -> AsyncIterator[Any]:
    async with Mcp.setup(session="shared") as held:
        yield held


def started(folder: Path) -> list[int]:
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def test_64_rollouts_of_two_workers_share_a_session_each(folder: Path) -> None:
    """A command is started once before the run, to be tried, and once in a worker, not 64 times; it ends with it."""
    (folder / "tasks.jsonl").write_text("".join(f'{{"prompt": "{n} + 1?"}}\n' for n in range(16)))
    more = ["--tasks", "tasks.jsonl", "-a", "judge=judges.py:judge", "-a", "session=shared", "--max-turns", "2"]
    play(stdio(), *more, "--processes", "2", cwd=folder)
    assert len(started(folder)) == 3
    assert [pid for pid in started(folder) if is_there(pid)] == []


async def test_two_servers_at_once_of_both_kinds(folder: Path) -> None:
    """One by stdio, one over HTTP that wants a key: the rollout has the tools of both, each at its own server."""
    os.environ["ROLLOUT_TEST_KEY"] = "s3cret"
    with http_server("s3cret") as url:
        both = f"{stdio(prefix='own_')} | {url}"
        async with opened(both, headers="X-Key: $ROLLOUT_TEST_KEY") as env:
            await env.reset({"prompt": "?"})
            assert [each["function"]["name"] for each in env.tools] == ["own_add", "own_pid", "add", "pid"]
            assert await first_tool(env, calling("own_add", a=1, b=2)) == "3"
            assert await first_tool(env, calling("own_add", a=1, b=2)) == "1003"
            assert await first_tool(env, calling("add", a=5, b=6)) == "11"
            assert await first_tool(env, calling("own_pid")) != await first_tool(env, calling("pid"))
        async with opened(both) as env:
            with pytest.raises(ServerFailed, match="does it want a header"):
                await env.reset({"prompt": "?"})
        with pytest.raises(Exception, match="two servers have a tool 'add'"):
            async with opened(f"{stdio()} | {url}", headers="X-Key: $ROLLOUT_TEST_KEY") as env:
                await env.reset({"prompt": "?"})


async def test_a_value_of_a_header_is_nowhere(folder: Path) -> None:
    """Neither in what the run keeps, nor in what it says, nor in the settings that go to workers."""
    (folder / "tasks.jsonl").write_text('{"prompt": "?"}\n')
    os.environ["ROLLOUT_TEST_KEY"] = "s3cret-of-mine"
    with http_server("s3cret-of-mine") as url:
        more = ["--tasks", "tasks.jsonl", "-a", "judge=judges.py:judge", "-a", "headers=X-Key: $ROLLOUT_TEST_KEY"]
        play(f"mcp:{url}", *more, "--max-turns", "2", cwd=folder, n=1, r=2)
    kept = [path for path in (folder / "run").rglob("*") if path.is_file()]
    assert any(b"ROLLOUT_TEST_KEY" in path.read_bytes() for path in kept)
    assert [path for path in kept if b"s3cret-of-mine" in path.read_bytes()] == []


async def test_rollouts_that_share_see_what_others_did(folder: Path, common: Any) -> None:
    """One process, whose state is everybody's; a rollout's end ends nothing of it."""
    async with opened(stdio(), common, session="shared") as first:
        await first.reset({"prompt": "?"})
        assert await first_tool(first, calling("add", a=1, b=1)) == "2"
        async with opened(stdio(), common, session="shared") as second:
            await second.reset({"prompt": "?"})
            assert await first_tool(second, calling("add", a=1, b=1)) == "1002"
        assert await first_tool(first, calling("add", a=1, b=1)) == "2002"
    assert len(started(folder)) == 1
    assert is_there(started(folder)[0])


async def test_one_that_died_is_started_again_for_those_that_begin(folder: Path, common: Any) -> None:
    """Whoever had it fails, also where the next one is there by then: what the server knew of them is lost."""
    async with opened(stdio(), common, session="shared") as first:
        await first.reset({"prompt": "?"})
        os.kill(started(folder)[0], signal.SIGKILL)
        with pytest.raises(ServerFailed):
            await first.step(calling("add", a=1, b=1))
        async with opened(stdio(), common, session="shared") as second:
            await second.reset({"prompt": "?"})
            assert await first_tool(second, calling("add", a=1, b=1)) == "2"
            with pytest.raises(ServerFailed, match="what it knew of this rollout"):
                await first.step(calling("add", a=1, b=1))
    assert len(started(folder)) == 2


async def test_one_that_hangs_is_replaced(folder: Path, common: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that takes too long fails; the server is asked whether it still answers, and this one does not."""
    monkeypatch.setattr("envs.adapters.sessions._PROBE_S", 0.5)
    given = {"session": "shared", "timeout_s": "6"}
    async with opened(stdio("hangs"), common, **given) as first:
        await first.reset({"prompt": "?"})
        with pytest.raises(ServerFailed, match="in a call of hang"):
            await first.step(calling("hang"))
    async with opened(stdio("hangs"), common, **given) as second:
        await second.reset({"prompt": "?"})
        assert await first_tool(second, calling("add", a=1, b=1)) == "2"
    assert len(started(folder)) == 2


async def test_256_wait_for_one_start_and_share_its_failure(folder: Path, common: Any) -> None:
    """A server that does not start is tried once for all that wait, and again for whoever comes later."""

    async def begun(spec: str) -> str:
        async with opened(spec, common, session="shared", timeout_s="20") as env:
            try:
                await env.reset({"prompt": "?"})
            except ServerFailed as error:
                return str(error)
            return "begun"

    assert set(await asyncio.gather(*(begun(stdio()) for _ in range(256)))) == {"begun"}
    assert len(started(folder)) == 1
    failed = await asyncio.gather(*(begun(stdio("breaks")) for _ in range(256)))
    assert ["no licence" in each for each in failed] == [True] * 256
    assert "no licence" in await begun(stdio("breaks"))


async def test_what_one_rollout_started_is_not_cancelled_with_it(folder: Path) -> None:
    """In an engine: the first rollout is given up in the session's start, and the others play on it."""
    make = env_factory(stdio(), {"judge": "judges.py:judge", "session": "shared"})
    config = EngineConfig(concurrency=2)
    tasks = [{"prompt": "?", "answer": 5}] * 8
    async with Engine(config, make, transport=ScriptedTransport([reply("It is 5.")] * 9)) as engine:
        async for group in engine.stream(tasks[:1]):
            assert group.rollouts[0].reward == 1.0
        (process,) = started(folder)
        async for group in engine.stream(tasks):
            assert group.rollouts[0].reward == 1.0
        assert is_there(process)
    assert not is_there(process)
    assert started(folder) == [process]


async def test_256_at_once_on_one_session_leave_nothing(folder: Path) -> None:
    """Memory is that of what plays, not of what has played."""
    make = env_factory(stdio(), {"judge": "judges.py:judge", "session": "shared"})
    await leave_nothing(make, "5", 1, {"prompt": "?", "answer": 5})
    assert len(started(folder)) == 1


def test_mistakes_are_one_line(folder: Path) -> None:
    """Each says what is wanted."""
    address = "mcp:http://localhost:1/mcp"
    assert "must be rollout" in refused(address, judge="judges.py:judge", session="mine")
    assert "names no variable" in refused(address, judge="judges.py:judge", headers="X: 1")
    assert "not set" in refused(address, judge="judges.py:judge", headers="X: $NO_SUCH_VARIABLE_HERE")

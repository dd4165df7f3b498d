"""`mcp:COMMAND or URL`: real servers, started for each rollout or reached over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.adapters.sessions import ServerFailed
from rollout import Engine, EngineConfig
from rollout.chat.messages import user
from rollout.registry import env_factory
from tests.live.adapters.kit import MARKS, all_ended, is_there, play, refused, said
from tests.live.adapters.live_server import free_port
from tests.live.adapters.mcp_kit import calling, first_tool, http_server, opened, stdio
from transports.scripted import ScriptedTransport, Stalled, reply

pytestmark = MARKS


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    """The same server over HTTP."""
    with http_server() as address:
        yield address


def test_64_rollouts_over_http(url: str, folder: Path) -> None:
    """A session each with one server, all of them at once."""
    (folder / "tasks.jsonl").write_text(
        "".join(f'{{"prompt": "What is {n} + 1?", "answer": {n + 1}}}\n' for n in range(16))
    )
    more = ["--tasks", "tasks.jsonl", "-a", "judge=judges.py:judge", "--max-turns", "3"]
    assert "tool_calls" in play(f"mcp:{url}", *more, cwd=folder, max_tokens=32)["metrics"]


async def test_a_command_is_started_for_a_rollout_and_ended_with_it(folder: Path) -> None:
    """Its tools are the environment's; its state is no other rollout's; the judge sees the conversation."""
    async with opened(stdio()) as env, opened(stdio()) as other:
        assert [message.text for message in await env.reset({"prompt": "2 + 3?", "answer": 5})] == ["2 + 3?"]
        await other.reset({"prompt": "1 + 1?"})
        assert [each["function"]["name"] for each in env.tools] == ["add", "pid"]
        assert env.tools[0]["function"]["parameters"]["required"] == ["a", "b"]
        assert await first_tool(env, calling("add", a=2, b=3)) == "5"
        assert await first_tool(env, calling("add", a=2, b=3)) == "1005"
        assert await first_tool(other, calling("add", a=1, b=1)) == "2"
        pid = int(await first_tool(env, calling("pid")))
        assert is_there(pid)
        step = await env.step(said("It is 5."))
        assert (step.done, step.metrics) == (True, {"tool_calls": 3.0, "tool_errors": 0.0})
        assert await env.score([user("2 + 3?"), said("It is 5.")]) == 1.0
    assert not is_there(pid)


async def test_what_a_server_refuses_is_told_to_the_model(folder: Path) -> None:
    """A tool that raises, arguments that do not fit, a tool that is not there; the session goes on."""
    async with opened(stdio(), output_chars="60") as env:
        await env.reset({"prompt": "?"})
        assert await first_tool(env, calling("add", a=13, b=1)) == "Error executing tool add"
        assert "left out]" in await first_tool(env, calling("add", a="many"))
        assert await first_tool(env, calling("sub")) == "error: no tool named 'sub'; there are add, pid"
        assert await first_tool(env, calling("add", a=1, b=1)) in ("2", "1002", "2002")
        assert env._metrics == {"tool_calls": 4.0, "tool_errors": 3.0}


async def test_a_server_that_dies_is_the_rollouts_failure(folder: Path) -> None:
    """In the middle of a call, or before it lists its tools; closing what is gone is no error."""
    async with opened(stdio()) as env:
        await env.reset({"prompt": "?"})
        with pytest.raises(ServerFailed, match="in a call of add"):
            await env.step(calling("add", a=66, b=0))
    async with opened(stdio("breaks")) as env:
        with pytest.raises(ServerFailed, match="no licence"):
            await env.reset({"prompt": "?"})
    async with opened(stdio("sleeps"), timeout_s="1.5") as env:
        with pytest.raises(ServerFailed, match=r"did not start within 1.5 s \(timeout_s\)"):
            await env.reset({"prompt": "?"})


async def test_a_run_goes_on_without_them(folder: Path) -> None:
    """Rollouts whose server breaks fail by themselves, and a stream after them is played."""
    transport = ScriptedTransport([reply("It is 5.")])
    broken = env_factory(stdio("breaks"), {"judge": "judges.py:judge"})
    sound = env_factory(stdio(), {"judge": "judges.py:judge"})
    async with Engine(EngineConfig(concurrency=4), broken, transport=transport) as engine:
        failed = [group.rollouts[0] async for group in engine.stream([{"prompt": "?"}] * 4)]
        (played,) = [g.rollouts[0] async for g in engine.stream([{"prompt": "?", "answer": 5}], env=sound)]
    assert ["no licence" in str(rollout.failure) for rollout in failed] == [True] * 4
    assert (played.failure, played.reward) == (None, 1.0)


async def test_a_server_that_never_answers_is_not_waited_for(folder: Path) -> None:
    """Whoever is told to stop while it starts ends at once, and ends the command."""
    async with opened(stdio("sleeps"), timeout_s="600") as env:
        begun = asyncio.create_task(env.reset({"prompt": "?"}))
        async with asyncio.timeout(60):
            while not (folder / "pids").exists():  # noqa: ASYNC110  # a process that starts has no other sign
                await asyncio.sleep(0.05)
            begun.cancel()
            await asyncio.wait([begun])
            await env.close()
    await all_ended([int(pid) for pid in (folder / "pids").read_text().split()])


async def test_commands_end_with_a_rollout_that_is_given_up(folder: Path) -> None:
    """At the rollout's deadline, in the start of its session or in the middle of a turn."""
    make = env_factory(stdio(), {"judge": "judges.py:judge"})
    config = EngineConfig(concurrency=4, episode_timeout_s=5.0)
    async with Engine(config, make, transport=ScriptedTransport([Stalled()] * 4)) as engine:
        groups = [group async for group in engine.stream([{"prompt": "?"}] * 4)]
    assert [group.rollouts[0].ok for group in groups] == [False] * 4
    started = [int(pid) for pid in (folder / "pids").read_text().split()]
    assert [pid for pid in started if is_there(pid)] == []


def test_servers_that_cannot_be_used_end_a_run_before_it_begins(folder: Path) -> None:
    """A command that ends or never answers, an address where nobody is, two tools of one name, a task without its
    prompt: one line, and no process is left."""
    away = f"http://127.0.0.1:{free_port()}/mcp"
    for spec, given, words in (
        (stdio("breaks"), {}, "it printed: no licence"),
        (stdio("sleeps"), {"timeout_s": "1.5"}, "did not start within 1.5 s (timeout_s)"),
        (f"mcp:{away}", {"session": "shared"}, f"{away} cannot be used: ConnectError"),
        (f"{stdio()} | {stdio()[4:]}", {}, "two servers have a tool 'add'"),
        (stdio(), {"prompt": "question"}, "an mcp task needs 'question'"),
        (stdio(), {"judge": "json:loads"}, "is called with (task, messages)"),
    ):
        assert words in refused(spec, {"prompt": "?"}, **{"judge": "judges.py:judge", **given})
    asyncio.run(all_ended([int(pid) for pid in (folder / "pids").read_text().split()]))


@pytest.mark.parametrize(
    ("spec", "given", "words"),
    [
        ("mcp:no-such-program x", {}, "there is no command 'no-such-program'"),
        ("mcp: | ", {}, "names no server"),
        ("mcp:'python", {}, "cannot be split"),
        ("mcp:http://localhost:1/mcp", {}, "--tasks FILE.jsonl"),
        ("mcp:http://localhost:1/mcp", {"timeout_s": "0"}, "must be above 0"),
    ],
)
def test_mistakes_are_one_line(folder: Path, spec: str, given: dict[str, str], words: str) -> None:
    """Each says what is wanted."""
    assert words in refused(spec, judge="judges.py:judge", **given)

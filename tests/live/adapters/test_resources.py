"""`nemo-gym:URL`: resources servers of NeMo Gym's own wheel, with its example data, from the Python that it wants.

What is tested is our side, which runs where the package is not: see `nemo_server` for the other.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from envs.adapters.nemo import ResourcesFailed
from envs.adapters.resources import NemoGym
from rollout import Engine, EngineConfig
from rollout.chat.messages import Message
from rollout.registry import env_factory
from tests.live.adapters.kit import MARKS, play, refused, said, same_tasks
from tests.live.adapters.live_server import free_port, serving, wait_for
from tests.live.adapters.test_many import leave_nothing
from tests.live.install import python_of
from transports.scripted import ScriptedTransport, Stalled

pytestmark = MARKS

SERVER = Path(__file__).with_name("nemo_server.py")


#: A count that a session begins with, tools that add to it, a reward for the right one; a search of several steps; and
#: one that steps by itself.
COUNTER, SEARCH, BLACKJACK = "example_session_state_mgmt", "example_multi_step", "blackjack"


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, tuple[str, Path]]]:
    """The addresses of the wheel's servers, and their example data."""
    ports = {name: free_port() for name in (COUNTER, SEARCH, BLACKJACK)}
    command = [str(python_of("nemo-gym")), str(SERVER), *(f"{name}:{port}" for name, port in ports.items())]
    with serving(command, ports[BLACKJACK]) as process:
        assert process.stdout is not None
        folders = itertools.islice((line.strip() for line in process.stdout if line.strip().endswith("data")), 3)
        data = [Path(folder) / "example.jsonl" for folder in folders]
        for port in ports.values():
            wait_for(port, process)
        yield {name: (f"http://127.0.0.1:{port}", path) for (name, port), path in zip(ports.items(), data, strict=True)}


@pytest.fixture
def counter(servers: dict[str, tuple[str, Path]]) -> tuple[str, Path]:
    return servers[COUNTER]


def calling(*calls: tuple[str, dict[str, Any]]) -> Message:
    made = [
        {"id": f"call_{at}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for at, (name, arguments) in enumerate(calls)
    ]
    return Message.of({"role": "assistant", "content": "", "tool_calls": made})


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@asynccontextmanager
async def opened(url: str, **given: str) -> AsyncIterator[Any]:
    async with NemoGym.setup(url) as common:
        env: Any = env_factory(f"nemo-gym:{url}", given)()
        env.shared = common
        yield env


def test_64_rollouts_from_two_workers(counter: tuple[str, Path], tmp_path: Path) -> None:
    """The scheme and its settings travel to them by name; the rows are those of the wheel."""
    url, data = counter
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(itertools.islice(itertools.cycle(data.read_text().splitlines(True)), 16)))
    more = ["-a", f"data={rows}", "--max-turns", "3", "--processes", "2"]
    assert "tool_calls" in play(f"nemo-gym:{url}", *more, cwd=tmp_path, max_tokens=32)["metrics"]


async def by_the_packages_agent(url: str, row: dict[str, Any], calls: list[tuple[str, dict[str, Any]]]) -> float:
    """The reward of what the package's simple_agent would send, request by request."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
        await (await client.post(f"{url}/seed_session", json=row)).read()
        output: list[dict[str, Any]] = []
        for at, (name, arguments) in enumerate(calls):
            named = {"name": name, "arguments": json.dumps(arguments), "call_id": f"c{at}"}
            output.append({"type": "function_call", **named})
            given = await (await client.post(f"{url}/{name}", json=arguments)).text()
            output.append({"type": "function_call_output", "call_id": f"c{at}", "output": given})
        text = {"type": "output_text", "text": "Done.", "annotations": []}
        output.append({"type": "message", "role": "assistant", "id": "m", "status": "completed", "content": [text]})
        about = {"id": "r", "object": "response", "created_at": 0, "model": "m"}
        rest = {"output": output, "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
        answer = await client.post(f"{url}/verify", json={**row, "response": {**about, **rest}})
        reward: float = (await answer.json())["reward"]
        return reward


@pytest.mark.parametrize("name", [COUNTER, SEARCH])
async def test_rewards_are_the_packages_own(name: str, servers: dict[str, tuple[str, Path]]) -> None:
    """Right and wrong answers to every row of two servers' data, as the package's agent would have sent them."""
    url, data = servers[name]
    given = []
    for row in rows_of(data):
        for wrong in (0, 1):
            if name == SEARCH:
                values = [value + wrong for value in row["expected_synonym_values"]]
                calls = [("extract_synonym_values", {"synonym_values": values})]
            else:
                count = row["expected_count"] - row["initial_count"] + wrong
                calls = [("increment_counter", {"count": count}), ("get_counter_value", {})]
            async with opened(url) as env:
                await env.reset(row)
                for call in calls:
                    await env.step(calling(call))
                last = await env.step(said("Done."))
                assert last.done
                assert await env.score([]) is None
            given.append(last.reward)
            assert last.reward == await by_the_packages_agent(url, row, calls)
    assert given == [1.0, 0.0] * len(rows_of(data))
    if name == SEARCH:
        assert (last.metrics["accuracy"], last.metrics["set_overlap"]) == (0.0, 0.0)


async def test_a_row_opens_the_conversation_and_sessions_are_apart(counter: tuple[str, Path]) -> None:
    """Its messages and its tools; two rollouts of one row count each for itself; several calls in one turn."""
    url, data = counter
    row = rows_of(data)[0]
    async with opened(url) as env, opened(url) as other:
        (opening,) = await env.reset(row)
        await other.reset(row)
        assert opening.text == row["responses_create_params"]["input"][0]["content"]
        assert [each["function"]["name"] for each in env.tools] == ["increment_counter", "get_counter_value"]
        step = await env.step(calling(("increment_counter", {"count": 4}), ("get_counter_value", {})))
        assert [message.text for message in step.messages] == ['{"success":true}', '{"count":7}']
        step = await other.step(calling(("get_counter_value", {})))
        assert step.messages[0].text == '{"count":3}'


async def test_what_a_server_refuses_is_told_to_the_model(counter: tuple[str, Path]) -> None:
    """Arguments that do not fit, a path that is no tool, although the server has it."""
    url, data = counter
    async with opened(url) as env:
        await env.reset(rows_of(data)[0])
        step = await env.step(calling(("increment_counter", {"count": "many"})))
        assert "valid integer" in step.messages[0].text
        step = await env.step(calling(("verify", {})))
        assert step.messages[0].text.startswith("error: no tool named 'verify'; there are increment_counter")
        assert step.metrics == {"tool_calls": 2.0, "tool_errors": 2.0}


async def test_a_row_without_tools_is_given_the_servers_endpoints(counter: tuple[str, Path]) -> None:
    """As its OpenAPI names them, without what is no tool; with `tools=row` there are none."""
    url, data = counter
    row = rows_of(data)[0]
    bare = {**row, "responses_create_params": {"input": "add 2"}}
    async with opened(url) as env:
        await env.reset(bare)
        assert [each["function"]["name"] for each in env.tools] == ["increment_counter", "get_counter_value"]
        wanted = env.tools[0]["function"]["parameters"]
        assert (wanted["required"], wanted["properties"]["count"]["type"]) == (["count"], "integer")
        assert env.tools[1]["function"]["parameters"] == {"type": "object", "properties": {}}
    async with opened(url, tools="row") as env:
        await env.reset(bare)
        assert list(env.tools) == []


async def test_a_conversation_that_ends_at_a_limit_is_verified(counter: tuple[str, Path]) -> None:
    """What the model did until then counts, where a rollout ends after calls, or in an answer that was cut off."""
    url, data = counter
    row = rows_of(data)[0]
    right = calling(("increment_counter", {"count": row["expected_count"] - row["initial_count"]}))
    async with opened(url) as env:
        await env.reset(row)
        assert not (await env.step(right)).done
        assert await env.score([]) == 1.0
    async with opened(url) as env:
        await env.reset(row)
        env.finish_reason = "length"
        step = await env.step(right)
        assert (step.done, step.reward) == (True, 0.0)


async def test_servers_that_step(servers: dict[str, tuple[str, Path]]) -> None:
    """Blackjack, of the package's GymnasiumServer: reset and step in place of verify, a reward with the last."""
    url, data = servers[BLACKJACK]
    row = rows_of(data)[0]
    async with opened(url) as env:
        opening = await env.reset(row)
        assert [message.role for message in opening] == ["system", "user", "user"]
        step, rewards = await env.step(said("<action>hit</action>")), []
        for _ in range(12):
            rewards.append(step.reward)
            if step.done:
                break
            step = await env.step(said("<action>stand</action>"))
        assert step.done
        assert sum(rewards) in (-1.0, 0.0, 1.0)
        assert await env.score([]) is None


async def test_what_breaks_is_the_rollouts_failure(counter: tuple[str, Path]) -> None:
    """A row of another data set, a server that is gone: no reward is given for either."""
    url, data = counter
    row = rows_of(data)[0]
    async with opened(url) as env:
        with pytest.raises(ResourcesFailed, match=r"seed_session answers 422: .*of this server's data set\?"):
            await env.reset({"responses_create_params": row["responses_create_params"]})
        gone: Any = env_factory(f"nemo-gym:http://127.0.0.1:{free_port()}", {})()
        gone.shared = env.shared
        with pytest.raises(ResourcesFailed, match="is gone in seed_session"):
            await gone.reset(row)


async def test_256_at_once_leave_nothing(counter: tuple[str, Path]) -> None:
    """Memory is that of what plays, not of what has played; those that are given up leave nothing either."""
    url, data = counter
    row = rows_of(data)[0]
    make = env_factory(f"nemo-gym:{url}", {})
    await leave_nothing(make, "Done.", 1, row)
    config = EngineConfig(concurrency=4, episode_timeout_s=2.0)
    async with Engine(config, make, transport=ScriptedTransport([Stalled()] * 4)) as engine:
        groups = [group async for group in engine.stream([row] * 4)]
    assert [group.rollouts[0].ok for group in groups] == [False] * 4


def test_tasks_and_mistakes(counter: tuple[str, Path], tmp_path: Path) -> None:
    """The same rows for the same seed; one line for whatever is wrong."""
    url, data = counter
    spec = f"nemo-gym:{url}"
    assert len(same_tasks(env_factory(spec, {"data": str(data)}), n=3)) == 3
    assert "-a data=FILE.jsonl or --tasks" in refused(spec)
    assert "cannot be read" in refused(spec, data=str(tmp_path / "none.jsonl"))
    (tmp_path / "other.jsonl").write_text('{"prompt": "?"}\n')
    assert "must have 'responses_create_params'" in refused(spec, data=str(tmp_path / "other.jsonl"))
    assert "no server at http://127.0.0.1:1" in refused("nemo-gym:http://127.0.0.1:1", data=str(data))
    assert "names no /verify" in refused(f"{spec}/docs", data=str(data))
    assert "is no address" in refused("nemo-gym:counter", data=str(data))
    assert "must be auto" in refused(spec, tools="all")

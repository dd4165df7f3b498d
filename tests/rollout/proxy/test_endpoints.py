"""An engine's rollouts over HTTP: one endpoint for a process, a key for each rollout."""

from __future__ import annotations

import asyncio
import urllib.request

import httpx
import msgspec
import pytest

from rollout import Agent, Engine, EngineConfig, Model, Outcome, Task
from rollout.errors import ConfigError
from rollout.play.model import RolloutModel
from rollout.proxy.endpoints import HttpEndpoints
from rollout.records import Route
from rollout.tokens.prefix import FallbackReason
from tests.rollout.proxy.kit import asking_of, chat_body, proxied, text_of
from transports.scripted import ScriptedTransport, Stalled, reply


class Asks(Agent):
    """Asks twice over HTTP, with a client of its own."""

    async def run(self, task: Task, model: Model) -> Outcome:
        at = model.endpoint
        headers = {"authorization": f"Bearer {at.api_key}"}
        async with httpx.AsyncClient(base_url=at.openai_base_url, headers=headers) as client:
            first = await client.post("/chat/completions", json=chat_body("hello"))
            await client.post("/chat/completions", json=chat_body("hello", text_of(first), "go on"))
        return Outcome(reward=1.0)


class AsksInAThread(Agent):
    """The same by a plain function, which blocks."""

    def run(self, task: Task, model: Model) -> Outcome:
        at = model.endpoint
        body = msgspec.json.encode(chat_body("hello"))
        headers = {"authorization": f"Bearer {at.api_key}"}
        with urllib.request.urlopen(urllib.request.Request(f"{at.openai_base_url}/chat/completions", body, headers)):
            return Outcome(reward=1.0)


async def test_an_agent_asks_over_http_and_each_rollout_is_its_own() -> None:
    """Rollouts at once share the endpoint, and each has its own turns."""
    transport = ScriptedTransport([reply(f"answer {n}") for n in range(8)])
    async with Engine(EngineConfig(verify=True), Asks, transport=transport) as engine:
        (group,) = [group async for group in engine.stream([{}], rollouts_per_task=4)]
    for rollout in group.rollouts:
        assert (rollout.failure, rollout.reward, len(rollout.turns)) == (None, 1.0, 2)
        assert rollout.turns[0].fallback is FallbackReason.FIRST_TURN


async def test_a_plain_agent_asks_from_its_thread() -> None:
    """Its endpoint is opened there, and answered by the engine's loop."""
    transport = ScriptedTransport([reply("4")])
    async with Engine(EngineConfig(verify=True), AsksInAThread, transport=transport) as engine:
        (group,) = [group async for group in engine.stream([{}])]
    assert [rollout.reward for rollout in group.finished] == [1.0]


async def test_the_rollout_that_opened_the_endpoint_ends_before_others() -> None:
    """It is served on: what one rollout's agent had opened is not cancelled with it."""
    transport = ScriptedTransport([reply(f"answer {n}") for n in range(6)])
    config = EngineConfig(verify=True, concurrency=1)
    async with Engine(config, Asks, transport=transport) as engine:
        (group,) = [group async for group in engine.stream([{}], rollouts_per_task=3)]
    assert [rollout.failure for rollout in group.rollouts] == [None] * 3


async def test_turns_of_a_served_rollout_are_its_sessions() -> None:
    """A second turn that sends the first one's answer back goes out token-in."""
    async with proxied() as served:
        first = text_of(await served.chat("hello"))
        text_of(await served.chat("hello", first, "go on"))
        assert [turn.route for turn in served.asking.session.turns] == [Route.MESSAGE_IN, Route.TOKEN_IN]


async def test_one_endpoint_serves_all_rollouts_of_a_process() -> None:
    """Rollouts share its port; a rollout that asks again has the key that it had."""
    config = EngineConfig()
    transport = ScriptedTransport([])
    async with HttpEndpoints(config) as endpoints:
        models = [RolloutModel(asking_of(transport, config)) for _ in range(2)]
        one, other = [endpoints.open(model) for model in models]
        assert one.base_url == other.base_url
        assert one.api_key != other.api_key
        assert one.api_key not in repr(one)
        assert endpoints.open(models[0]) == one
        assert len(endpoints.keys) == 2
        endpoints.close(models[0])
        assert len(endpoints.keys) == 1


async def test_the_end_of_a_rollout_ends_its_requests_and_its_key() -> None:
    """What is under way is cancelled, on the server too, and answered 409, as whatever comes later."""
    async with proxied(Stalled()) as served:
        request = asyncio.ensure_future(served.chat("hello"))
        await served.transport.wait_for(1)
        served.endpoints.close(served.model)
        assert (await request).status_code == 409
        assert served.transport.cancelled == 1
        assert (await served.chat("hello")).status_code == 409


async def test_a_port_that_is_taken_is_said() -> None:
    """When the engine starts, one line names the setting; several processes go on to the next port."""
    transport = ScriptedTransport([])
    async with HttpEndpoints(EngineConfig()) as first:
        config = EngineConfig()
        taken = int(first.open(RolloutModel(asking_of(transport, config))).base_url.rpartition(":")[2])
        second = HttpEndpoints(EngineConfig(proxy_port=taken))
        with pytest.raises(ConfigError, match="another proxy_host or proxy_port"):
            await second.__aenter__()
        async with HttpEndpoints(EngineConfig(proxy_port=taken, processes=3)) as third:
            assert third.open(RolloutModel(asking_of(transport, config)))


async def test_an_advertised_address_is_what_programs_are_told() -> None:
    """With the port where it names none; requests that name it as their host are answered."""
    config = EngineConfig(proxy_address="agents.internal")
    async with HttpEndpoints(config) as endpoints:
        endpoint = endpoints.open(RolloutModel(asking_of(ScriptedTransport([reply("4")]), config)))
        host, _, port = endpoint.base_url.removeprefix("http://").partition(":")
        assert host == "agents.internal"
        headers = {"x-api-key": endpoint.api_key, "host": host}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers) as client:
            assert text_of(await client.post("/v1/chat/completions", json=chat_body("hello"))) == "4"


@pytest.mark.slow
async def test_each_process_has_an_endpoint_of_its_own() -> None:
    """Agents are answered where they play, and what they ask goes on token-in there."""
    async with Engine(EngineConfig(verify=True, processes=2, max_tokens=8), Asks) as engine:
        groups = [group async for group in engine.stream([{"n": n} for n in range(4)], rollouts_per_task=2)]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert [rollout.failure for rollout in rollouts] == [None] * 8
    assert {tuple(turn.route for turn in rollout.turns) for rollout in rollouts} == {(Route.MESSAGE_IN, Route.TOKEN_IN)}

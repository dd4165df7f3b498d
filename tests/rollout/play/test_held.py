"""Rollouts whose agents their caller runs."""

from __future__ import annotations

import asyncio
import math
import urllib.request
from typing import Any

import httpx
import msgspec
import pytest

from rollout import Engine, EngineConfig, EngineThread, Outcome, Rollout, user
from rollout.agent import Agent, Endpoint
from rollout.errors import ConfigError, EngineClosed, LimitReached, RolloutError
from rollout.records import FailureKind, StopReason
from tests.rollout.proxy.kit import chat_body, text_of
from transports.scripted import ScriptedTransport, Stalled, reply


class Idle(Agent):
    """What an engine needs that only holds rollouts for others."""

    async def run(self, task: Any, model: Any) -> Outcome:
        return Outcome()


def engine(*entries: Any, **config: Any) -> Engine:
    transport = ScriptedTransport(entries or [reply(f"{n}") for n in range(9)])
    return Engine(EngineConfig(verify=True, **config), Idle, transport=transport)


async def ask(endpoint: Endpoint, text: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {endpoint.api_key}"}
    async with httpx.AsyncClient(base_url=endpoint.openai_base_url, headers=headers) as client:
        return await client.post("/chat/completions", json=chat_body(text))


def failed(rollout: Rollout) -> FailureKind:
    assert rollout.failure is not None
    return rollout.failure.kind


async def test_a_trainer_runs_an_agent_and_says_how_it_went() -> None:
    """Its turns over HTTP and in process are one rollout, with the reward that it was given."""
    async with engine() as running:
        async with running.endpoint({"id": "sum"}, member=1) as held:
            assert text_of(await ask(held.endpoint, "hello")) == "0"
            assert (await held.model.chat([user("and more")])).text == "1"
            held.finish(reward=0.5, metrics={"asked": 2})
        rollout = held.rollout
        assert (rollout.id, rollout.reward, rollout.metrics) == ("0-sum-1", 0.5, {"asked": 2.0})
        assert (rollout.stop, len(rollout.samples())) == (StopReason.DONE, 2)
        assert (await ask(held.endpoint, "hello")).status_code == 409
        assert running.stats().turns == 2


async def test_many_are_held_at_once_and_each_is_a_task_of_its_own() -> None:
    """Beside the engine's slots; each has its own turns."""
    async with engine(concurrency=1) as running:

        async def one(reward: float) -> Rollout:
            async with running.endpoint() as held:
                assert (await ask(held.endpoint, "hello")).status_code == 200
                held.finish(reward)
            return held.rollout

        rollouts = await asyncio.gather(*(one(n) for n in range(4)))
    assert [rollout.reward for rollout in rollouts] == [0.0, 1.0, 2.0, 3.0]
    assert len({rollout.task_id for rollout in rollouts}) == 4
    assert [len(rollout.turns) for rollout in rollouts] == [1] * 4


async def test_what_the_block_raises_is_the_rollouts_failure_and_the_callers() -> None:
    """What was played is kept with it."""
    async with engine() as running:
        held = running.endpoint()

        async def block() -> None:
            async with held:
                await ask(held.endpoint, "hello")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await block()
        assert (failed(held.rollout), len(held.rollout.turns)) == (FailureKind.ENVIRONMENT, 1)


async def test_a_limit_ends_it_as_it_ends_others() -> None:
    """A stop reason, not a failure, also where the caller lets the exception pass."""
    async with engine(max_turns=1) as running:
        held = running.endpoint()

        async def block() -> None:
            async with held:
                for _ in range(2):
                    await held.model.chat([user("hello")])

        with pytest.raises(LimitReached):
            await block()
        assert held.rollout.stop is StopReason.MAX_TURNS


async def test_the_engines_end_ends_it_and_the_caller_is_told() -> None:
    """Its request is cancelled, and answered; what comes later is refused."""
    running = engine(Stalled())
    async with running:
        held = running.endpoint()
        await held.__aenter__()
        endpoint = held.endpoint
        request = asyncio.ensure_future(ask(endpoint, "hello"))
        transport = running._given
        assert isinstance(transport, ScriptedTransport)
        await transport.wait_for(1)
        late = running.endpoint()
    assert (await request).status_code == 409
    assert failed(held.rollout) is FailureKind.CANCELLED
    await held.__aexit__(None, None, None)
    with pytest.raises(EngineClosed):
        await late.__aenter__()


async def test_a_caller_that_is_cancelled_leaves_nothing_running() -> None:
    """Its rollout is cancelled with it."""
    async with engine() as running:
        held, holds = running.endpoint(), asyncio.Event()

        async def hold() -> None:
            async with held:
                holds.set()
                await asyncio.Event().wait()

        holding = asyncio.ensure_future(hold())
        await holds.wait()
        holding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holding
        assert failed(held.rollout) is FailureKind.CANCELLED


async def test_wrong_calls_are_said() -> None:
    """A task that cannot be written, a block that was not entered, one that is entered twice."""
    async with engine() as running:
        with pytest.raises(ConfigError, match="task 0"):
            running.endpoint({"a": object()})
        held = running.endpoint()
        with pytest.raises(RuntimeError, match="enter it first"):
            _ = held.endpoint
        async with held:
            with pytest.raises(RuntimeError, match="entered before"):
                await held.__aenter__()


async def test_one_that_cannot_begin_says_why() -> None:
    """The agent of ours is made as any other is."""
    async with engine(episode_timeout_s=1e-9) as running:
        with pytest.raises(RolloutError, match="could not begin"):
            await running.endpoint().__aenter__()


def test_a_plain_trainer_holds_one_too() -> None:
    """With an EngineThread, in a plain `with`."""
    transport = ScriptedTransport([reply("4")])
    with EngineThread(EngineConfig(verify=True), Idle, transport=transport) as engine:
        with engine.endpoint({"a": 1}) as held:
            body, at = msgspec.json.encode(chat_body("hello")), held.endpoint
            headers = {"authorization": f"Bearer {at.api_key}"}
            request = urllib.request.Request(f"{at.openai_base_url}/chat/completions", body, headers)
            with urllib.request.urlopen(request) as answer:
                assert answer.status == 200
            held.finish(reward=1.0)
        assert (held.rollout.reward, len(held.rollout.turns)) == (1.0, 1)


async def test_one_that_nobody_judged_has_an_unknown_reward() -> None:
    """Where `finish` is not called, or is told that nobody knows: it is no 0, and its samples say NaN."""
    async with engine() as running:
        for judge in (lambda held: None, lambda held: held.finish(reward=None)):
            async with running.endpoint({"id": "sum"}) as held:
                await held.model.chat([user("hello")])
                judge(held)
            assert (held.rollout.reward_known, held.rollout.score) == (False, None)
            assert [math.isnan(sample.reward) for sample in held.rollout.samples()] == [True]
        async with running.endpoint({"id": "sum"}) as held:
            held.finish()
        assert (held.rollout.reward_known, held.rollout.reward) == (True, 0.0)

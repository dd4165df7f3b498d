"""Case engine/slow_close: `close` takes longer than 5 s on a rollout that finished well."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rollout import Engine, EngineConfig, Env, Message, Step, user
from transports.scripted import ScriptedTransport, reply

log: list[str] = []


class Slow(Env):
    """Its close takes six seconds."""

    async def reset(self, task: Any) -> list[Message]:
        return [user("hello")]

    async def step(self, message: Message) -> Step:
        return Step(done=True, reward=1.0)

    async def close(self) -> None:
        log.append("begun")
        await asyncio.sleep(6)
        log.append("ended")


@pytest.mark.slow
async def test_a_slow_close_is_not_cut() -> None:
    """Nothing was cancelled, so the setting's minute counts and not our grace."""
    async with Engine(EngineConfig(), Slow, transport=ScriptedTransport([reply("x")])) as engine:
        (group,) = [group async for group in engine.stream([{"n": 1}])]
    assert log == ["begun", "ended"]
    assert group.rollouts[0].ok

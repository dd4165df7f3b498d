"""Case seams/e12: a completion that keeps coming back as aborted."""

from __future__ import annotations

from envs.echo import Echo
from rollout import Engine, EngineConfig
from rollout.records import FailureKind
from rollout.servers.completion import MAX_RESUMPTIONS
from transports.scripted import ScriptedTransport, reply


async def test_a_completion_that_is_aborted_again_and_again_fails_after_growing_pauses() -> None:
    """It is the transport's failure, and no turn."""
    transport = ScriptedTransport([reply("a", finish_reason="abort")] * 40)
    waited: list[float] = []

    async def note(seconds: float) -> None:
        waited.append(seconds)

    async with Engine(EngineConfig(concurrency=1), lambda: Echo(turns=1), transport=transport) as engine:
        engine._player.model.sleep = note
        (group,) = [group async for group in engine.stream(Echo().tasks(1, 0))]
    (rollout,) = group.rollouts
    assert rollout.failure is not None
    assert (rollout.failure.kind, rollout.turns) == (FailureKind.TRANSPORT, [])
    assert len(waited) == MAX_RESUMPTIONS
    assert waited == sorted(waited)
    assert waited[:4] == [0.5, 1.0, 2.0, 4.0]

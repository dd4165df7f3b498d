"""Case seams/e17: after `engine.cancel()` the engine plays on, retries included."""

from __future__ import annotations

from rollout.errors import ServerBusy
from tests.rollout.test_engine import collect, engine
from transports.scripted import Fault, reply


async def test_rollouts_are_tried_again_after_a_cancel() -> None:
    """A rollout that is started after the cancel is as one that was started before."""
    one = [Fault(ServerBusy("full")), reply("x")]
    running, _ = engine(*one, *one, concurrency=1, rollout_retries=3, max_turns=1)
    async with running:
        (before,) = await collect(running, 1)
        running.cancel()
        (after,) = await collect(running, 1)
    for group in (before, after):
        (rollout,) = group.rollouts
        assert rollout.ok
        assert [failure.message for failure in rollout.earlier_failures] == ["full"]

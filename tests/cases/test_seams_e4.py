"""Case seams/e4: a stream that outlives its engine."""

from __future__ import annotations

import pytest

from rollout.errors import EngineClosed
from tests.rollout.test_engine import engine
from transports.scripted import Stalled, reply


async def test_a_stream_that_outlives_its_engine_loses_nothing() -> None:
    """What had finished is in `untaken` once the engine is closed, and closing the stream then is no error."""
    running, transport = engine(*[reply("x")] * 3, Stalled(), concurrency=4, max_turns=1)
    async with running:
        stream = running.stream([{"n": n} for n in range(4)])
        first = await anext(stream)
        await transport.wait_for(4)
    kept = [group for group in running.untaken if group.finished]
    assert len(first.finished) == 1
    assert len(kept) == 2 == running.stats().finished - 1
    await stream.aclose()
    assert [group for group in running.take_untaken() if group.finished] == kept
    assert running.untaken == []


async def test_asking_a_stream_of_a_closed_engine_is_a_clear_error() -> None:
    """Whether it had begun or not."""
    running, _ = engine()
    async with running:
        begun, waiting = running.stream([{"n": 0}, {"n": 1}]), running.stream([{"n": 0}])
        await anext(begun)
    for stream in (begun, waiting):
        with pytest.raises(EngineClosed, match="closed"):
            await anext(stream)

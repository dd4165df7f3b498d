"""What blocks the event loop is measured, and said."""

from __future__ import annotations

import time

import anyio
import pytest

from rollout.loop.lag import SAID_S, Lag


def test_percentile_and_maximum() -> None:
    """The percentile is over the last looks, the maximum over all."""
    lag = Lag()
    assert lag.p99_s == 0
    for number in range(100):
        lag.add(number / 1000)
    assert lag.p99_s == pytest.approx(0.099)
    for _ in range(3000):
        lag.add(0.001)
    assert lag.p99_s == 0.001
    assert lag.max_s == pytest.approx(0.099)


@pytest.mark.slow
async def test_a_blocked_loop_shows() -> None:
    """A callback that blocks is found by its delay."""
    lag = Lag()
    async with anyio.create_task_group() as group:
        group.start_soon(lag.watch)
        while lag.max_s < SAID_S:
            await anyio.lowlevel.checkpoint()
            time.sleep(SAID_S + 0.2)  # noqa: ASYNC251  # what is measured
        group.cancel_scope.cancel()
    assert lag.p99_s >= SAID_S

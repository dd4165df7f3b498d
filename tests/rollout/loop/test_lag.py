"""What blocks the event loop is measured, and said."""

from __future__ import annotations

import gc
import time

import anyio
import pytest

from rollout.loop.lag import SAID_S, Lag, spared_collector


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


def test_the_collector_leaves_out_what_was_there() -> None:
    """While rollouts are played, not afterwards, and also where playing raises."""
    frozen: list[int] = []

    def play() -> None:
        with spared_collector():
            frozen.append(gc.get_freeze_count())
            raise ValueError("played")

    with pytest.raises(ValueError, match="played"):
        play()
    assert frozen[0] > 0
    assert gc.get_freeze_count() == 0


def test_full_collections_are_rare_while_rollouts_are_played() -> None:
    """Objects that stay make Python look through all of them again and again: not here, and afterwards as before."""
    before = gc.get_threshold()

    def full_collections(full_every_s: float) -> int:
        with spared_collector(full_every_s=full_every_s), spared_collector():
            done = gc.get_stats()[2]["collections"]
            kept = [[number] for number in range(400_000)]
            assert kept
            return int(gc.get_stats()[2]["collections"] - done)

    assert full_collections(3600.0) == 0
    assert full_collections(0.0) > 0
    assert gc.get_threshold() == before

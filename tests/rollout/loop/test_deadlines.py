"""Deadlines count the time in which the servers were not paused by us."""

from __future__ import annotations

import anyio
import pytest

from rollout.loop.deadlines import Clock


async def test_a_deadline_ends_what_takes_too_long() -> None:
    """As anyio's own does; without a limit nothing ends."""
    clock = Clock()
    with pytest.raises(TimeoutError), clock.fail_after(0.001):
        await anyio.sleep_forever()
    with clock.move_on_after(0.001) as deadline:
        await anyio.sleep_forever()
    assert deadline.expired
    with clock.fail_after(None) as deadline:
        await anyio.lowlevel.checkpoint()
    assert not deadline.expired


async def test_a_deadline_stands_still_while_the_clock_is_stopped() -> None:
    """It has as long left afterwards as it had before, also where it began in between."""
    clock, ended = Clock(), list[str]()

    async def wait(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        ended.append(name)

    async with anyio.create_task_group() as group:
        group.start_soon(wait, "before", 0.02)
        await anyio.lowlevel.checkpoint()
        clock.stop()
        clock.stop()
        group.start_soon(wait, "between", 0.01)
        stood = clock.now()
        await anyio.sleep(0.05)
        assert ended == []
        assert clock.now() == stood
        clock.go()
        clock.go()
    assert ended == ["between", "before"]
    assert clock.now() >= stood + 0.01


async def test_a_deadline_that_is_cancelled_has_not_expired() -> None:
    """Whoever holds it may end it before its time."""
    clock = Clock()
    with clock.move_on_after(60) as deadline:
        deadline.scope.cancel()
        await anyio.lowlevel.checkpoint()
    assert not deadline.expired
    assert deadline.scope.cancelled_caught


async def test_a_timeout_inside_is_not_the_clocks() -> None:
    """An error of what is inside comes out as it is."""
    with pytest.raises(TimeoutError, match="mine"), Clock().fail_after(60):
        raise TimeoutError("mine")

"""A deadline counts only the time in which an answer could have been heard."""

from __future__ import annotations

import time

import anyio
import pytest

from transports.http.patience import answered_within


async def test_what_takes_too_long_is_given_up() -> None:
    """The body is cancelled, and the caller told."""
    began = time.monotonic()
    with pytest.raises(TimeoutError), answered_within(0.05):
        await anyio.sleep_forever()
    assert time.monotonic() - began < 60


async def test_a_blocked_loop_uses_up_no_patience() -> None:
    """An answer that came while the loop stood still is read, not called late."""
    event = anyio.Event()

    async def answer() -> None:
        await event.wait()
        for _ in range(20):  # an answer takes some steps of the loop to be read
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:

        async def block() -> None:
            time.sleep(0.5)  # noqa: ASYNC251  # the fault itself: user code that blocks the loop
            event.set()

        with answered_within(0.2):
            group.start_soon(block)
            await answer()


async def test_an_outer_end_is_not_ours() -> None:
    """A caller that is cancelled is cancelled, not told of a deadline."""
    with anyio.move_on_after(0.01) as scope, answered_within(30):
        await anyio.sleep_forever()
    assert scope.cancelled_caught

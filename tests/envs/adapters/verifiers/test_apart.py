"""An event loop in a thread of its own, and what is run on it from another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from envs.adapters.verifiers.apart import Apart


@asynccontextmanager
async def opened() -> AsyncIterator[Apart]:
    apart = Apart("apart")
    try:
        yield apart
    finally:
        await apart.close()


async def test_what_is_run_there_gives_and_raises() -> None:
    """On one loop and in one thread, which are not the caller's."""

    async def place() -> tuple[int, int]:
        return threading.get_ident(), id(asyncio.get_running_loop())

    async def breaks() -> None:
        raise ValueError("unlucky")

    async with opened() as apart:
        found = await asyncio.gather(*(apart.run(place) for _ in range(8)))
        assert len(set(found)) == 1
        assert found[0] != await place()
        with pytest.raises(ValueError, match="unlucky"):
            await apart.run(breaks)


async def test_what_blocks_there_keeps_nobody_waiting_here() -> None:
    """A call that does not give its loop back is waited for by its caller only."""
    held = threading.Event()

    async def blocks() -> bool:
        return held.wait(30)

    async with opened() as apart:
        waiting = asyncio.create_task(apart.run(blocks))
        await asyncio.sleep(0)
        held.set()
        assert await waiting


async def test_a_cancelled_caller_waits_for_the_end() -> None:
    """What the call holds is given back before its caller goes on."""
    begun, given_back = asyncio.Event(), threading.Event()
    here = asyncio.get_running_loop()

    async def holds() -> None:
        try:
            here.call_soon_threadsafe(begun.set)
            await asyncio.Event().wait()
        finally:
            given_back.set()

    async with opened() as apart:
        waiting = asyncio.create_task(apart.run(holds))
        await begun.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert given_back.is_set()


async def test_one_that_is_cancelled_at_once_ends() -> None:
    """Whether or not it had begun there."""
    async with opened() as apart:
        for _ in range(50):
            waiting = asyncio.create_task(apart.run(asyncio.Event().wait))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting


async def test_its_end_cancels_what_runs_there() -> None:
    """Whoever waits is told so, and the thread ends."""

    async def waits() -> None:
        await asyncio.Event().wait()

    apart = Apart("apart")
    waiting = asyncio.create_task(apart.run(waits))
    await asyncio.sleep(0)
    await apart.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert "closed" in repr(apart)

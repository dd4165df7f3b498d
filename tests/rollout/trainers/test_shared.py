"""An engine that nobody owns is opened once, shared, and closed when nobody uses it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from rollout.trainers.shared import SharedEngines


class Counted:
    """Counts what is opened and closed."""

    def __init__(self) -> None:
        self.opened, self.open = 0, 0
        self.closed = asyncio.Event()

    @asynccontextmanager
    async def make(self) -> AsyncIterator[int]:
        owner = asyncio.current_task()
        await asyncio.sleep(0)
        self.opened += 1
        self.open += 1
        yield self.opened
        assert asyncio.current_task() is owner
        self.open -= 1
        self.closed.set()


async def test_all_who_ask_at_once_have_the_same() -> None:
    """It is opened once, and closed in the task that opened it."""
    counted, engines = Counted(), SharedEngines[int]()

    async def use() -> int:
        async with engines.use("key", counted.make) as found:
            await asyncio.sleep(0)
            return found

    assert await asyncio.gather(*(use() for _ in range(8))) == [1] * 8
    assert await use() == 1
    async with engines.use("other", counted.make) as found:
        assert found == 2
    assert counted.open == 2
    await engines.aclose()
    assert counted.open == 0
    assert repr(engines) == "<SharedEngines 0 open>"


async def test_one_that_nobody_uses_is_closed() -> None:
    """The next one who asks has another."""
    counted, engines = Counted(), SharedEngines[int](idle_s=0)
    async with engines.use("key", counted.make) as found:
        async with engines.use("key", counted.make) as again:
            assert found == again == 1
        assert counted.open == 1
    await counted.closed.wait()
    async with engines.use("key", counted.make) as found:
        assert found == 2
    await engines.aclose()


async def test_what_cannot_be_opened_is_said_to_each() -> None:
    """And is tried anew by who asks later."""
    engines, tries = SharedEngines[int](), 0

    @asynccontextmanager
    async def fails() -> AsyncIterator[int]:
        nonlocal tries
        tries += 1
        await asyncio.sleep(0)
        raise ValueError("no server")
        yield 0

    async def use() -> None:
        async with engines.use("key", fails):
            pass

    for found in await asyncio.gather(use(), use(), return_exceptions=True):
        assert isinstance(found, ValueError)
    assert tries == 1
    with pytest.raises(ValueError, match="no server"):
        await use()
    assert tries == 2
    await engines.aclose()


async def test_who_gives_up_waiting_takes_it_from_nobody() -> None:
    """One caller is cancelled while it opens; the other has it."""
    counted, engines, gate = Counted(), SharedEngines[int](), asyncio.Event()

    @asynccontextmanager
    async def slow() -> AsyncIterator[int]:
        await gate.wait()
        async with counted.make() as found:
            yield found

    async def use() -> int:
        async with engines.use("key", slow) as found:
            return found

    first, second = asyncio.create_task(use()), asyncio.create_task(use())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    gate.set()
    assert await second == 1
    with pytest.raises(asyncio.CancelledError):
        await first
    await engines.aclose()

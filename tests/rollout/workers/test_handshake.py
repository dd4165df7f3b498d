"""Engine and worker know each other by the secret, before a frame of either is read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.workers.handshake import LENGTH, MAGIC, Refused, greet, new_secret, prove

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def ends() -> AsyncIterator[tuple[Streams, Streams]]:
    """Both ends of a connection, as streams."""
    accepted: asyncio.Future[Streams] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda reader, writer: accepted.set_result((reader, writer)), "127.0.0.1", 0)
    theirs = await asyncio.open_connection(*server.sockets[0].getsockname())
    ours = await accepted
    try:
        yield ours, theirs
    finally:
        for _, writer in (ours, theirs):
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        server.close()
        await server.wait_closed()


async def meet(engines: bytes | None, workers: bytes, number: int = 7) -> list[object]:
    """What each side makes of the other: a worker's number, None, or the exception."""
    async with ends() as (ours, theirs):

        async def engine() -> int:
            try:
                return await greet(*ours, lambda asked: engines if asked == number else None)
            except Refused:
                ours[1].transport.abort()
                raise

        return list(await asyncio.gather(engine(), prove(*theirs, number, workers), return_exceptions=True))


async def test_who_has_the_secret_is_known() -> None:
    """The engine learns which worker it is, and the worker that it is the engine."""
    secret = new_secret()
    assert await meet(secret, secret) == [7, None]


@pytest.mark.parametrize("known", [True, False])
async def test_who_has_it_not_is_refused(known: bool) -> None:
    """Whether the number is awaited or not: the engine shows nothing of its own then, and hangs up."""
    ours, theirs = await meet(new_secret() if known else None, new_secret())
    assert isinstance(ours, Refused)
    assert isinstance(theirs, EOFError | OSError)


async def test_a_worker_reads_nothing_of_an_engine_that_has_it_not() -> None:
    """Whoever takes the engine's port learns no secret, and cannot have anything unpickled."""
    async with ends() as ((reader, writer), theirs):
        proving = asyncio.create_task(prove(*theirs, 7, new_secret()))
        writer.write(MAGIC + bytes(LENGTH))
        await reader.readexactly(8 + 2 * LENGTH)
        writer.write(bytes(LENGTH) + b"\x80\x04.")
        with pytest.raises(Refused, match="has not this worker's secret"):
            await proving


async def test_what_was_heard_serves_no_second_time() -> None:
    """An answer that was listened in to does not fit the next greeting's random bytes."""
    secret = new_secret()
    async with ends() as (ours, (reader, writer)):
        greeting = asyncio.create_task(greet(*ours, lambda _: secret))
        await reader.readexactly(len(MAGIC) + LENGTH)
        async with ends() as ((far_reader, far_writer), theirs):
            proving = asyncio.create_task(prove(*theirs, 7, secret))
            far_writer.write(MAGIC + bytes(LENGTH))
            writer.write(await far_reader.readexactly(8 + 2 * LENGTH))
            proving.cancel()
        with pytest.raises(Refused):
            await greeting


async def test_something_else_that_listens_is_named() -> None:
    """Such as a web server, or another version of the engine."""
    async with ends() as ((_, writer), theirs):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n".ljust(64))
        with pytest.raises(Refused, match="no engine of this version"):
            await prove(*theirs, 7, new_secret())


@given(st.binary(max_size=200))
def test_whatever_is_said_instead_is_refused(said: bytes) -> None:
    """No bytes but the answer itself are taken for one."""

    async def try_it() -> None:
        async with ends() as (ours, (_, writer)):
            writer.write(said)
            writer.write_eof()
            with pytest.raises((Refused, EOFError, OSError)):
                await greet(*ours, lambda _: new_secret())

    asyncio.run(try_it())

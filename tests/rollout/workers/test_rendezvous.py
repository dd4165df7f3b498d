"""Workers of other hosts connect, each once, by its own secret; nobody else does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from rollout.errors import ConfigError
from rollout.workers.handshake import Refused, new_secret
from rollout.workers.rendezvous import MOST_STRANGERS, Rendezvous, connect
from tests.log_kit import capture_logs


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[Rendezvous]:
    rendezvous = Rendezvous("127.0.0.1")
    await rendezvous.open(0)
    try:
        yield rendezvous
    finally:
        rendezvous.close()


async def test_frames_go_both_ways_once_a_worker_is_known() -> None:
    """From there on it is a channel like any other, whose end can be waited for."""
    secret = new_secret()
    async with listening() as rendezvous:
        awaited = rendezvous.await_worker(3, secret)
        theirs = await connect("127.0.0.1", rendezvous.port, 3, secret)
        ours = await awaited
        theirs.send(b"ready")
        ours.send(b"play")
        assert (await ours.receive(), await theirs.receive()) == (b"ready", b"play")
        theirs.close()
        assert await ours.receive() is None
        assert ours.ended.is_set()
        ours.abort()


async def test_a_secret_serves_once() -> None:
    """A second connection by the same secret is refused, and the first goes on."""
    secret = new_secret()
    async with listening() as rendezvous:
        awaited = rendezvous.await_worker(3, secret)
        theirs = await connect("127.0.0.1", rendezvous.port, 3, secret)
        ours = await awaited
        with pytest.raises(Refused, match="hung up"):
            await connect("127.0.0.1", rendezvous.port, 3, secret)
        ours.send(b"play")
        assert await theirs.receive() == b"play"
        theirs.abort()
        ours.abort()


async def test_a_wrong_secret_costs_the_right_one_nothing() -> None:
    """Who guesses is refused and logged, without what was said; the worker that is awaited may still come."""
    secret = new_secret()
    async with listening() as rendezvous:
        awaited = rendezvous.await_worker(3, secret)
        with capture_logs() as log:
            for number in (3, 4):
                with pytest.raises((Refused, OSError)):
                    await connect("127.0.0.1", rendezvous.port, number, new_secret())
        refused = [entry for entry in log if entry["event"] == "connection_refused"]
        assert len(refused) == 2
        assert secret.hex() not in str(log)
        theirs = await connect("127.0.0.1", rendezvous.port, 3, secret)
        (await awaited).abort()
        theirs.abort()


async def test_who_is_given_up_is_awaited_no_more() -> None:
    """Its connection is refused, though it has the secret."""
    secret = new_secret()
    async with listening() as rendezvous:
        rendezvous.await_worker(3, secret).cancel()
        await asyncio.sleep(0)
        with pytest.raises((Refused, OSError)):
            await connect("127.0.0.1", rendezvous.port, 3, secret)


async def test_strangers_are_bounded() -> None:
    """Of those that connect and say nothing no more than so many are heard at once."""
    async with listening() as rendezvous:
        silent = [await asyncio.open_connection("127.0.0.1", rendezvous.port) for _ in range(MOST_STRANGERS)]
        for reader, _ in silent:
            await reader.readexactly(8)
        reader, writer = await asyncio.open_connection("127.0.0.1", rendezvous.port)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        for _, each in [*silent, (reader, writer)]:
            each.transport.abort()
            with contextlib.suppress(OSError):
                await each.wait_closed()


async def test_an_address_of_another_host_is_refused() -> None:
    """In one line that names the setting."""
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.77:0 .* ray_listen"):
        await Rendezvous("192.0.2.77").open(0)


async def test_a_port_that_is_taken_is_refused() -> None:
    """As well."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            await Rendezvous("127.0.0.1").open(port)

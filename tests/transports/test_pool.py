"""aiohttp's connections: long bodies arrive whole, and what went wrong is told apart from what took too long."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import anyio
import pytest

from tests.live.servers import free_port
from transports.pool import AiohttpPool, Received, Unreachable

Answer = Callable[[anyio.abc.SocketStream], Awaitable[None]]


def pool() -> AiohttpPool:
    return AiohttpPool({"x-always": "1"}, max_connections=4, connect_timeout_s=5)


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """A server that gives each connection to `answer`."""

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await answer(stream)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        group.cancel_scope.cancel()


async def test_a_body_of_megabytes_arrives_whole() -> None:
    """A prompt of 300,000 tokens is 2 MB; headers are there, too."""
    body, got = b"[" + b"123456," * 300_000 + b"1]", bytearray()

    async def answer(stream: anyio.abc.SocketStream) -> None:
        while not got.endswith(body[-2:]) or len(got) < len(body):
            got.extend(await stream.receive(2**20))
        await stream.send(b"HTTP/1.1 200 OK\r\nretry-after: 3\r\ncontent-length: 2\r\n\r\n{}")

    made = pool()
    async with server(answer) as url:
        assert await made.send("POST", f"{url}/x", body, {"x-one": "2"}, 10.0) == Received(200, b"{}", "3")
        await made.aclose()
    head, _, sent = bytes(got).partition(b"\r\n\r\n")
    assert sent == body
    assert {b"x-always: 1", b"x-one: 2", b"content-length: %d" % len(body)} <= set(head.lower().split(b"\r\n"))


async def test_half_an_answer_is_none() -> None:
    """A connection that ends in the middle of a body."""

    async def answer(stream: anyio.abc.SocketStream) -> None:
        await stream.receive()
        await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")

    made = pool()
    async with server(answer) as url:
        with pytest.raises(Unreachable) as caught:
            await made.send("GET", url, None, {}, 10.0)
        assert isinstance(caught.value.__cause__, aiohttp.ClientPayloadError)
        await made.aclose()


async def test_too_late_is_not_unreachable() -> None:
    """The answer's time is over, on a connection that stands."""

    async def answer(stream: anyio.abc.SocketStream) -> None:
        await anyio.sleep_forever()

    made = pool()
    async with server(answer) as url:
        with pytest.raises(TimeoutError):
            await made.send("GET", url, None, {}, 0.05)
        await made.aclose()


async def test_nobody_there_is_unreachable() -> None:
    """A closed port."""
    made = pool()
    with pytest.raises(Unreachable) as caught:
        await made.send("GET", f"http://127.0.0.1:{free_port()}/x", None, {}, 10.0)
    assert isinstance(caught.value.__cause__, aiohttp.ClientConnectorError)
    await made.aclose()

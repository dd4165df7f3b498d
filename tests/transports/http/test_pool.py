"""aiohttp's connections: long bodies arrive whole, and what went wrong is told apart from what took too long."""

from __future__ import annotations

import errno
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio
import pytest

from tests.live.servers import free_port
from transports.http.pool import AiohttpPool, TooLarge, Unreachable

Answer = Callable[[anyio.abc.SocketStream], Awaitable[None]]


def pool(**options: Any) -> AiohttpPool:
    return AiohttpPool({"x-always": "1"}, max_connections=4, connect_timeout_s=5, **options)


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
        received = await made.send("POST", f"{url}/x", body, {"x-one": "2"}, 10.0)
        assert (received.status, received.body, received.headers["Retry-After"]) == (200, b"{}", "3")
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


def answering(answer: bytes) -> Answer:
    """Gives these bytes to whoever asks."""

    async def give(stream: anyio.abc.SocketStream) -> None:
        await stream.receive()
        await stream.send(answer)

    return give


async def asked(answer: bytes, **options: Any) -> bytes:
    """The body that arrives."""
    made = pool(**options)
    caught: Exception
    async with server(answering(answer)) as url:
        try:
            return (await made.send("GET", f"{url}/x", None, {}, 10.0)).body
        except (Unreachable, TooLarge) as error:  # outside of the server's task group it is itself
            caught = error
        finally:
            await made.aclose()
    raise caught


PACKED = gzip.compress(b"[" + b"1," * 50_000 + b"1]")


async def test_a_packed_answer_is_unpacked() -> None:
    """Gateways pack what they pass on."""
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(PACKED)
    assert len(await asked(head + PACKED)) == 100_003


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(PACKED) + PACKED,
        b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n" + b"x" * 5000,
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + b"x" * 5000,
    ],
    ids=["packed", "said", "unsaid"],
)
async def test_an_answer_has_a_limit(answer: bytes) -> None:
    """Whatever its form, it does not fill the memory."""
    with pytest.raises(TooLarge):
        await asked(answer, most_bytes=4096)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzzz\r\nnot hex\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhal",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 7\r\n\r\nnotgzip",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x15\x03\x01\x00\x02\x02P",
        b"",
    ],
    ids=["chunks", "half a chunk", "not gzip", "ssh", "tls", "nothing"],
)
async def test_what_is_no_answer_is_unreachable(answer: bytes) -> None:
    """Whatever a broken server or another program sends."""
    with pytest.raises(Unreachable) as caught:
        await asked(answer)
    assert caught.value.sent
    assert str(caught.value).startswith("the connection failed: ")
    assert "\n" not in str(caught.value)


async def test_tls_to_a_plain_server_is_said() -> None:
    """The wrong scheme is named."""
    made = pool()
    async with server(answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as url:
        with pytest.raises(Unreachable, match="does it speak http, not https"):
            await made.send("GET", f"{url.replace('http', 'https')}/x", None, {}, 10.0)
    await made.aclose()


async def test_a_name_that_is_not_found_was_not_sent() -> None:
    """What could not leave this machine is no word on a server; a refused connection is one."""
    made = pool()
    with pytest.raises(Unreachable) as caught:
        await made.send("GET", "http://nowhere.invalid/x", None, {}, 10.0)
    assert not caught.value.sent
    with pytest.raises(Unreachable, match="connection refused") as caught:
        await made.send("GET", f"http://127.0.0.1:{free_port()}/x", None, {}, 10.0)
    assert caught.value.sent
    await made.aclose()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENETUNREACH, errno.EADDRNOTAVAIL])
def test_what_this_machine_lacks_was_not_sent(number: int) -> None:
    """No file descriptor, no network, no port."""
    error = Unreachable()
    error.__cause__ = OSError(number, "x")
    assert not error.sent

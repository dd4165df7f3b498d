"""A proxy that goes wrong: it drops connections, delays, cuts bodies, and answers 429, 500 and 503 by itself."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

#: Of each hundred requests, how many meet which fault; the rest pass.
FAULTS = {"drop": 3, "drop_answer": 2, "delay": 5, "cut": 1, "429": 2, "500": 1, "503": 2}

#: An answer's beginning that tells the client to come back at once, so that the test is short.
_BUSY = "HTTP/1.1 {} Busy\r\ncontent-length: 0\r\nretry-after: 0\r\nconnection: close\r\n\r\n"


class FaultyProxy:
    """One request for each connection, forwarded or spoiled by chance, the same for the same seed."""

    def __init__(self, upstream: str, seed: int) -> None:
        parts = urlsplit(upstream)
        self._upstream = parts.hostname, parts.port
        self._chance = random.Random(seed)
        self.met: Counter[str] = Counter()
        """How often each fault was met."""
        self._serving: set[asyncio.Task[None] | None] = set()
        """asyncio itself keeps no task from being collected in the middle of its work."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(task := asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
            await self._serve(reader, writer)
        with contextlib.suppress(OSError):
            writer.close()
        self._serving.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await _read_request(reader)
        kinds = [*FAULTS, "pass"]
        fault = self._chance.choices(kinds, [*FAULTS.values(), 100 - sum(FAULTS.values())])[0]
        self.met[fault] += 1
        if fault == "drop":
            return None
        if fault.isdigit():
            writer.write(_BUSY.format(fault).encode())
            return await writer.drain()
        if fault == "delay":
            await asyncio.sleep(self._chance.uniform(0.1, 1.0))
        answer = await self._forward(request)
        if fault == "drop_answer":
            return None
        writer.write(answer[: -self._chance.randint(1, 40)] if fault == "cut" else answer)
        await writer.drain()
        return None

    async def _forward(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*self._upstream)
        try:
            head, _, body = request.partition(b"\r\n\r\n")
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
            writer.write(b"\r\n".join([*lines, b"connection: close"]) + b"\r\n\r\n" + body)
            await writer.drain()
            return await reader.read(-1)
        finally:
            writer.close()


async def _read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return head + await reader.readexactly(length)


@contextlib.contextmanager
def faulty_proxy(upstream: str, seed: int) -> Iterator[tuple[str, FaultyProxy]]:
    """The proxy's address, and the proxy, in a thread of its own."""
    proxy, loop = FaultyProxy(upstream, seed), asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=2**24))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", proxy
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

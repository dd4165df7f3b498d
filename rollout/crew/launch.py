"""Starts the processes on this machine, and carries their frames.

A cluster's way of starting them takes this one's place: whatever gives a `Worker` is a `Launch`.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import signal
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio
import anyio.to_thread

#: A frame is its length and its bytes.
_LENGTH = struct.Struct("<Q")

#: Bytes that are taken from a socket before whoever reads them has asked.
_READ_AHEAD = 2**22


class Channel:
    """Frames over a stream, in order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        """The channel of one end of a connection."""
        end.setblocking(False)
        return cls(*await asyncio.open_connection(sock=end, limit=_READ_AHEAD))

    def send(self, frame: bytes) -> None:
        """Sends a frame, as soon as the other side takes it. To a closed channel it is lost: `receive` says that."""
        self._writer.writelines((_LENGTH.pack(len(frame)), frame))

    async def sent(self) -> None:
        """Waits while much is waiting to be sent."""
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def receive(self) -> bytes | None:
        """The next frame; None where the other side has closed or is gone."""
        try:
            head = await self._reader.readexactly(_LENGTH.size)
            return await self._reader.readexactly(*_LENGTH.unpack(head))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def close(self) -> None:
        """The other side receives None once it has taken what was sent."""
        self._writer.close()


class Worker(Protocol):
    """A started process."""

    @property
    def channel(self) -> Channel: ...

    async def ended(self) -> str:
        """Waits until it has ended; says how."""
        ...

    def kill(self) -> None:
        """Ends it now. May be called for one that has ended."""
        ...


Launch = Callable[[], Awaitable[Worker]]


class LocalWorker:
    """A process on this machine."""

    def __init__(self, process: multiprocessing.process.BaseProcess, channel: Channel) -> None:
        self._process = process
        self._channel = channel

    def __repr__(self) -> str:
        return f"<LocalWorker {self._process.pid}>"

    @property
    def channel(self) -> Channel:
        """See `Worker`."""
        return self._channel

    async def ended(self) -> str:
        """See `Worker`."""
        await anyio.to_thread.run_sync(self._process.join, abandon_on_cancel=True)
        status = self._process.exitcode
        if status is not None and status < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-status).name}"
        return f"exit status {status}"

    def kill(self) -> None:
        """See `Worker`."""
        self._process.kill()


async def launch_process() -> Worker:
    """A new Python process with none of this one's state."""
    from rollout.crew.worker import main

    ours, theirs = socket.socketpair()
    # spawn, not fork: a forked loop, its threads and its tokenizers are not usable.
    process = multiprocessing.get_context("spawn").Process(
        target=main, args=(theirs,), name="rollout-worker", daemon=True
    )
    await anyio.to_thread.run_sync(process.start)
    theirs.close()
    return LocalWorker(process, await Channel.over(ours))

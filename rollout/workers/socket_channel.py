"""A channel over a socket, between processes of one machine."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

from rollout.workers.channel import MOST_FRAME, FrameTooLong

_LENGTH = struct.Struct("<Q")

#: Bytes that are taken from a socket before whoever reads them has asked.
READ_AHEAD = 2**22

#: A longer frame arrives in parts, so that the other side is heard while it comes.
_PART = 2**20


class SocketChannel:
    """Frames over a stream, each its length and its bytes. A `Channel`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.received = 0
        """See `Channel`."""

    def __repr__(self) -> str:
        return f"<SocketChannel {self.received} bytes received, {self.unsent} unsent>"

    @classmethod
    async def over(cls, end: socket.socket) -> SocketChannel:
        """The channel of one end of a connection."""
        end.setblocking(False)
        return cls(*await asyncio.open_connection(sock=end, limit=READ_AHEAD))

    @property
    def unsent(self) -> int:
        """See `Channel`."""
        return self._writer.transport.get_write_buffer_size()

    def send(self, frame: bytes) -> None:
        """See `Channel`."""
        if len(frame) > MOST_FRAME:
            raise FrameTooLong(len(frame))
        if not self._writer.is_closing():
            self._writer.writelines((_LENGTH.pack(len(frame)), frame))

    async def sent(self) -> None:
        """See `Channel`."""
        with contextlib.suppress(OSError):
            await self._writer.drain()

    async def receive(self) -> bytes | bytearray | None:
        """See `Channel`."""
        try:
            head = await self._reader.readexactly(_LENGTH.size)
            (length,) = _LENGTH.unpack(head)
            self.received += _LENGTH.size
            if length > _PART:
                return await self._in_parts(length)
            frame = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            return None
        self.received += length
        return frame

    async def _in_parts(self, length: int) -> bytearray:
        frame = bytearray()
        while len(frame) < length:
            part = await self._reader.readexactly(min(_PART, length - len(frame)))
            self.received += len(part)
            frame += part
        return frame

    def close(self) -> None:
        """See `Channel`."""
        self._writer.close()

    def abort(self) -> None:
        """See `Channel`."""
        self._writer.transport.abort()

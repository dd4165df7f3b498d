"""What carries the frames between an engine and a worker: a stream, in order, each frame its length and its bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

_LENGTH = struct.Struct("<Q")

#: Bytes that are taken from a socket before whoever reads them has asked.
_READ_AHEAD = 2**22

#: A longer frame arrives in parts, so that the other side is heard while it comes.
_PART = 2**20

#: A frame's length at most, in bytes: what is longer is refused where it is sent.
MOST_FRAME = 2**30


class FrameTooLong(ValueError):
    """A message that is too long to be sent."""

    def __init__(self, length: int) -> None:
        super().__init__(
            f"it takes {length:,} bytes, and {MOST_FRAME:,} are the most that can be sent between processes"
        )


class Channel:
    """Frames over a stream, in order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.received = 0
        """Bytes that came so far: as long as this grows the other side is alive."""

    def __repr__(self) -> str:
        return f"<Channel {self.received} bytes received, {self.unsent} unsent>"

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        """The channel of one end of a connection."""
        end.setblocking(False)
        return cls(*await asyncio.open_connection(sock=end, limit=_READ_AHEAD))

    @property
    def unsent(self) -> int:
        """Bytes that wait for the other side to take them."""
        return self._writer.transport.get_write_buffer_size()

    def send(self, frame: bytes) -> None:
        """Sends a frame, as soon as the other side takes it. To a closed channel it is lost: `receive` says that.

        Raises FrameTooLong.
        """
        if len(frame) > MOST_FRAME:
            raise FrameTooLong(len(frame))
        if not self._writer.is_closing():
            self._writer.writelines((_LENGTH.pack(len(frame)), frame))

    async def sent(self) -> None:
        """Waits while much is waiting to be sent; no longer than until the channel ends."""
        with contextlib.suppress(OSError):
            await self._writer.drain()

    async def receive(self) -> bytes | bytearray | None:
        """The next frame; None where the other side has closed or is gone."""
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
        """The other side receives None once it has taken what was sent."""
        self._writer.close()

    def abort(self) -> None:
        """Ends it now, whatever is unsent: the other side may never take it."""
        self._writer.transport.abort()

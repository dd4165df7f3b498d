"""What carries the frames between an engine and a worker: in order, each whole, both ways.

`rollout.workers.socket_channel` has one over a socket, for processes of this machine. A launcher that starts workers
elsewhere brings its own.
"""

from __future__ import annotations

from typing import Protocol

#: A frame's length at most, in bytes: what is longer is refused where it is sent.
MOST_FRAME = 2**30


class FrameTooLong(ValueError):
    """A message that is too long to be sent."""

    def __init__(self, length: int) -> None:
        super().__init__(
            f"it takes {length:,} bytes, and {MOST_FRAME:,} are the most that can be sent between processes"
        )


class Channel(Protocol):
    """One end of it."""

    @property
    def received(self) -> int:
        """Bytes that came so far, parts of frames included: as long as this grows the other side is alive."""
        ...

    @property
    def unsent(self) -> int:
        """Bytes that wait for the other side to take them."""
        ...

    def send(self, frame: bytes) -> None:
        """Sends a frame, as soon as the other side takes it. To a closed channel it is lost: `receive` says that.

        Raises FrameTooLong.
        """
        ...

    async def sent(self) -> None:
        """Waits while much is waiting to be sent; no longer than until the channel ends."""
        ...

    async def receive(self) -> bytes | bytearray | None:
        """The next frame; None where the other side has closed or is gone."""
        ...

    def close(self) -> None:
        """The other side receives None once it has taken what was sent."""
        ...

    def abort(self) -> None:
        """Ends it now, whatever is unsent: the other side may never take it."""
        ...

"""Frames over a stream: whole, in order, bounded, and heard while they come."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import anyio
import pytest

from rollout.workers import channel as channels
from rollout.workers.channel import FrameTooLong
from rollout.workers.socket_channel import SocketChannel

Ends = tuple[SocketChannel, SocketChannel]


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    one, other = socket.socketpair()
    ours, theirs = await SocketChannel.over(one), await SocketChannel.over(other)
    yield ours, theirs
    ours.abort()
    theirs.abort()
    await anyio.lowlevel.checkpoint()


async def test_frames_come_as_they_were_sent(ends: Ends) -> None:
    """Empty ones, and such as come in parts, between others."""
    ours, theirs = ends
    frames = [b"", b"a", bytes(3 * 2**20 + 1), b"b"]
    async with anyio.create_task_group() as group:

        async def send() -> None:
            for frame in frames:
                ours.send(frame)
                await ours.sent()

        group.start_soon(send)
        assert [await theirs.receive() for _ in frames] == frames
    assert theirs.received == sum(map(len, frames)) + 8 * len(frames)


async def test_what_is_too_long_is_refused_where_it_is_sent(ends: Ends) -> None:
    """The channel goes on: only that message is lost."""
    ours, theirs = ends

    class Long(bytes):
        def __len__(self) -> int:
            return channels.MOST_FRAME + 1

    with pytest.raises(FrameTooLong, match="sent between processes"):
        ours.send(Long())
    ours.send(b"next")
    assert await theirs.receive() == b"next"


async def test_a_closed_channel_takes_what_is_sent_and_gives_none(ends: Ends) -> None:
    """What was sent before still comes; sending after the end raises nothing, and nobody waits."""
    ours, theirs = ends
    ours.send(b"last")
    ours.close()
    assert await theirs.receive() == b"last"
    assert await theirs.receive() is None
    ours.send(b"lost")
    theirs.abort()
    theirs.send(b"lost")
    with anyio.fail_after(60):
        await theirs.sent()


async def test_whoever_waits_for_a_side_that_takes_nothing_is_freed_at_its_end(
    ends: Ends,
) -> None:
    """`sent` waits no longer than the channel lives."""
    ours, _ = ends
    ours.send(bytes(2**24))
    assert ours.unsent > 0
    async with anyio.create_task_group() as group:
        group.start_soon(ours.sent)
        await anyio.lowlevel.checkpoint()
        ours.abort()

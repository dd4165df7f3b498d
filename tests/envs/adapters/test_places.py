"""The queue before a server that has only so many sessions."""

from __future__ import annotations

import asyncio

import pytest

from envs.adapters.places import NoPlace, Places


class Server:
    """Has so many sessions; counts how often it is asked, and how many it had at once."""

    def __init__(self, most: int) -> None:
        self.most, self.held, self.peak, self.asked = most, 0, 0, 0

    async def session(self) -> bool | None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.held >= self.most:
            return None
        self.held += 1
        self.peak = max(self.peak, self.held)
        return True


async def test_all_get_a_session_and_only_one_asks_again() -> None:
    """256 before a server of 3: each is asked for once, refused once at most, and again when one ends."""
    server, places = Server(3), Places("there")

    async def rollout() -> None:
        await places.taken(server.session, lambda: "3/3", 60)
        await asyncio.sleep(0)
        server.held -= 1
        places.left()

    await asyncio.gather(*(rollout() for _ in range(256)))
    assert (server.held, server.peak) == (0, 3)
    assert server.asked <= 3 * 256


async def test_others_may_hold_them() -> None:
    """The first in the queue asks from time to time, although none of ours ends."""
    server, places = Server(0), Places("there")
    asyncio.get_running_loop().call_later(0.12, setattr, server, "most", 1)
    _, waited = await places.taken(server.session, lambda: "0/0", 60)
    assert waited >= 0.1
    assert server.asked <= 6


async def test_whoever_waits_too_long_or_gives_up_leaves_the_queue() -> None:
    """The next one moves up."""
    server, places = Server(0), Places("there")
    with pytest.raises(NoPlace, match=r"there had no session free for 0.05 s \(wait_s\): 0/0"):
        await places.taken(server.session, lambda: "0/0", 0.05)
    given_up = asyncio.create_task(places.taken(server.session, lambda: "0/0", 60))
    waiting = asyncio.create_task(places.taken(server.session, lambda: "0/0", 60))
    await asyncio.sleep(0.01)
    given_up.cancel()
    server.most = 1
    assert (await waiting)[0]
    assert given_up.cancelled()

"""A server's sessions, where it has only so many: rollouts that find none wait for one another.

Whoever is refused stands in a queue, of which only the first asks again: at once when a session of this process ends,
and from time to time, since other processes may hold them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rollout.log import get_logger

_log = get_logger(__name__)

#: Seconds between two tries of the first in the queue, at first and at most.
_SOON, _LATE = 0.05, 2.0

T = TypeVar("T")


class NoPlace(Exception):
    """A server that had no session for a rollout for too long."""


class Places:
    """The queue of one process before one server."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._first = asyncio.Lock()
        self._freed = asyncio.Event()
        self._waiting = 0
        self._said = False

    async def taken(
        self, attempt: Callable[[], Awaitable[T | None]], refusal: Callable[[], str], limit_s: float
    ) -> tuple[T, float]:
        """What the attempt gives once it is not refused (None), and how long that took, in seconds.

        Raises NoPlace where it takes longer than it may.
        """
        begun = time.monotonic()
        if not self._waiting and (given := await attempt()) is not None:
            return given, 0.0
        if not self._said:
            self._said = True
            hint = "rollouts wait for one another: let the server have more (max_concurrent_envs), or play fewer (-c)"
            _log.warning("server_has_no_session_free", server=self._server, said=refusal(), hint=hint)
        self._waiting += 1
        try:
            async with asyncio.timeout(limit_s) as limit, self._first:
                return await self._asked(attempt), time.monotonic() - begun
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise NoPlace(f"{self._server} had no session free for {limit_s:g} s (wait_s): {refusal()}") from error
        finally:
            self._waiting -= 1

    async def _asked(self, attempt: Callable[[], Awaitable[T | None]]) -> T:
        pause = _SOON
        while True:
            self._freed.clear()
            if (given := await attempt()) is not None:
                return given
            try:
                async with asyncio.timeout(pause):
                    await self._freed.wait()
            except TimeoutError:
                pause = min(2 * pause, _LATE)

    def left(self) -> None:
        """A session of this process has ended."""
        self._freed.set()

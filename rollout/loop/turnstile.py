"""Work goes onto the event loop a few milliseconds at a time.

When thousands of answers arrive at once, each of their tasks is ready, and the loop would run them all, seconds of
work, before it looked at a timer or a socket again. Here they wait in line, and every round of the loop lets in as
many as fill `ROUND_S`. Nobody waits where the line is empty and the round has room.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

#: What a round of the loop may take, seconds: a fifth of the lag at which a loop counts as blocked.
ROUND_S = 0.01
_FIRST, _MOST = 8, 4_096


class Turnstile:
    """Belongs to the event loop in which it is first passed."""

    def __init__(self, *, round_s: float = ROUND_S) -> None:
        self._round_s = round_s
        self._line: deque[asyncio.Future[None]] = deque()
        self._room = _FIRST
        """How many a round lets in; learnt from how long the rounds take."""
        self._passed = 0
        """Of this round."""
        self._began: float | None = None

    def __repr__(self) -> str:
        return f"<Turnstile {len(self._line)} in line, {self._room} a round>"

    async def enter(self) -> None:
        """Returns when this round has room: at once, mostly."""
        if not self._line and self._passed < self._room:
            self._passed += 1
            self._open_round()
            return
        waiter = asyncio.get_running_loop().create_future()
        self._line.append(waiter)
        self._open_round()
        await waiter

    def _open_round(self) -> None:
        if self._began is None:
            self._began = time.perf_counter()
            asyncio.get_running_loop().call_soon(self._next_round)

    def _next_round(self) -> None:
        """Called behind those who were let in: what they took says how many may follow."""
        assert self._began is not None
        now = time.perf_counter()
        took_s, self._began = now - self._began, None
        if took_s > self._round_s:
            self._room = max(1, self._room // 2)
        elif self._passed >= self._room:
            self._room = min(_MOST, self._room + 1 + self._room // 8)
        self._passed = 0
        while self._line and self._passed < self._room:
            waiter = self._line.popleft()
            if not waiter.done():  # a task that was cancelled in line left it
                waiter.set_result(None)
                self._passed += 1
        if self._passed:
            self._open_round()

"""One server of a fleet: what is in flight on it, and whether it is alive."""

from __future__ import annotations

import time

import anyio

from rollout.errors import TransportError
from rollout.transport import Reply, Request, Transport, Watched

#: Seconds between two looks at each server.
CHECK_EVERY_S = 1.0

#: A server that refuses or answers an error this often in a row, asked how it is, is taken out.
STRIKES = 2

#: One that answers nothing for so long is, too: a busy server may be slow, so this is long.
HUNG_S = 60.0


class Member:
    """One server: its transport, what is in flight on it, and how often it died."""

    def __init__(self, url: str, transport: Transport, *, check_every_s: float = CHECK_EVERY_S) -> None:
        self.url = url
        self.transport = transport
        self.check_every_s = check_every_s
        self.deaths = 0
        self.refused = False
        """Whether it is well, but cannot be used."""
        self._strikes = 0
        self._heard_at = time.monotonic()
        self._dead_at = 0.0
        self._in_flight: set[anyio.CancelScope] = set()
        self._checking = anyio.Lock()

    def __repr__(self) -> str:
        return f"<Member {self.url} {len(self._in_flight)} in flight, {self.deaths} deaths>"

    async def generate(self, request: Request) -> Reply | None:
        """The reply; None where the server was taken out meanwhile. Raises TransportError."""
        with anyio.CancelScope() as scope:
            self._in_flight.add(scope)
            try:
                return await self.transport.generate(request)
            finally:
                self._in_flight.discard(scope)
        return None

    async def alive(self) -> bool:
        """Asks the server how it is, until it is clear."""
        if not isinstance(self.transport, Watched):
            return True
        asked = time.monotonic()
        async with self._checking:
            if max(self._heard_at, self._dead_at) > asked:
                return self._heard_at > self._dead_at  # someone else has asked since
            while not await self._answers(self.transport):
                if self._strikes >= STRIKES or time.monotonic() - self._heard_at > HUNG_S:
                    self._dead_at = time.monotonic()
                    return False
                await anyio.sleep(self.check_every_s / 2)
        return True

    async def _answers(self, transport: Watched) -> bool:
        try:
            with anyio.fail_after(HUNG_S / 6):
                await transport.check()
        except TransportError:
            self._strikes += 1
            return False
        except TimeoutError:
            return False
        self._strikes, self._heard_at = 0, time.monotonic()
        return True

    def drop(self) -> None:
        """Ends what is in flight: it goes elsewhere."""
        self.deaths += 1
        for scope in list(self._in_flight):
            scope.cancel()

"""One server of a fleet: what is in flight on it, and whether it is alive."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio

from rollout.errors import ConnectionFailed, TransportError
from rollout.transport import Reply, Request, ServerInfo, Traffic, Transport, opened

#: Seconds between two looks at each server.
CHECK_EVERY_S = 1.0

#: A server that refuses or answers an error this often in a row, asked how it is, is taken out.
STRIKES = 2

#: One that answers nothing for so long is, too: a busy server may be slow, so this is long.
HUNG_S = 60.0

Opener = Callable[[], Awaitable[Transport]]


class Member:
    """One server: its transport, what is in flight on it, and how often it died."""

    def __init__(self, url: str, transport: Opener | Any, *, check_every_s: float = CHECK_EVERY_S) -> None:
        """`transport` opens one; or it is one, which is connected anew where it has `connect()`."""
        self.url = url
        self._opener: Opener = transport if callable(transport) else partial(opened, transport)
        self._open: Transport | None = None
        self._earlier = Traffic()
        """What went over the connections of transports that were closed."""
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

    @property
    def transport(self) -> Transport:
        """The open one. Raises ConnectionFailed where none could be opened yet."""
        if self._open is None:
            raise ConnectionFailed(f"{self.url}: not connected yet")
        return self._open

    @property
    def traffic(self) -> Traffic:
        """Of all its transports so far."""
        now = self._open.traffic if self._open is not None else Traffic()
        return Traffic(self._earlier.sent + now.sent, self._earlier.received + now.received)

    async def open(self) -> ServerInfo:
        """Opens a transport in place of the one before. Raises ServerError, ConfigError."""
        before, found = self._open, await self._opener()
        if before is not None and before is not found:
            self._earlier = self.traffic
            self._open = found
            await before.aclose()
        self._open = found
        return found.info

    async def aclose(self) -> None:
        """Closes what is open."""
        if self._open is not None:
            await self._open.aclose()

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
        if self._open is None:
            return True  # whether it is there is found out by opening it
        transport, asked = self._open, time.monotonic()
        async with self._checking:
            if max(self._heard_at, self._dead_at) > asked:
                return self._heard_at > self._dead_at  # someone else has asked since
            while not await self._answers(transport):
                if self._strikes >= STRIKES or time.monotonic() - self._heard_at > HUNG_S:
                    self._dead_at = time.monotonic()
                    return False
                await anyio.sleep(self.check_every_s / 2)
        return True

    async def _answers(self, transport: Transport) -> bool:
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

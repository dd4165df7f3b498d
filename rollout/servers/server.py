"""One server of a fleet: its transport, what is in flight on it, and whether it is alive."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio

from rollout.errors import ConnectionFailed, NotSent, RequestTimeout, RolloutError, ServerError
from rollout.log import get_logger
from rollout.loop.deadlines import Clock, Deadline
from rollout.moved import forward_names
from rollout.request import Reply, Request
from rollout.servers.tally import Tally
from rollout.transport import ServerInfo, Traffic, Transport, opened

#: Seconds between two looks at each server.
CHECK_EVERY_S = 1.0

#: A server that refuses or answers an error this often in a row, asked how it is, is taken out.
STRIKES = 2

#: One that answers nothing at all for so long is, too: a busy server may be slow, so this is long.
HUNG_S = 60.0

#: How long one answer to the question how it is may take.
ANSWER_S = 10.0

#: How long opening may take: a probe samples a few tokens, and a busy server has others to sample.
OPEN_S = 120.0

Opener = Callable[[], Awaitable[Transport]]

_log = get_logger(__name__)


class Health:
    """Whether a server is alive, from what was heard of it. Pure.

    Any answer says that it is not hung; only its own word that it is well says that it is.
    """

    def __init__(self, now: float) -> None:
        self.strikes = 0
        self._heard_at = now
        self._silences = 0

    def __repr__(self) -> str:
        return f"<Health {self.strikes} strikes, {self._silences} silences>"

    def heard(self, now: float) -> None:
        """It answered something."""
        self._heard_at, self._silences = now, 0

    def well(self, now: float) -> None:
        """It said that it is well."""
        self.strikes = 0
        self.heard(now)

    def refused(self) -> None:
        """It was asked how it is, and refused the connection, or said that it is not well."""
        self.strikes += 1

    def silent(self) -> None:
        """It was asked how it is, and did not answer in time."""
        self._silences += 1

    def dead(self, now: float) -> bool:
        """A look that comes late says nothing of the server: silence counts where it was asked, and again."""
        return self.strikes >= STRIKES or (self._silences >= STRIKES and now - self._heard_at > HUNG_S)


class Server:
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
        self.why = ""
        """Why it was last found not to be well."""
        self._health = Health(time.monotonic())
        self._clear_at = 0.0
        """When it was last clear whether it lives, and which it was."""
        self._clear = True
        self._in_flight: set[Deadline] = set()
        self._tally = Tally()
        self._checking = anyio.Lock()

    def __repr__(self) -> str:
        return f"<Server {self.url} {len(self._in_flight)} in flight, {self.deaths} deaths>"

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

    @property
    def tally(self) -> Tally:
        """What was asked of it from here."""
        return self._tally.copied(in_flight=len(self._in_flight))

    async def open(self) -> ServerInfo:
        """Opens a transport in place of the one before, whose server may be another by now, and sees that it is well.

        Raises ServerError, ConfigError, TransportError.
        """
        try:
            with anyio.fail_after(OPEN_S):
                found = await self._opener()
                await self._put(found)
                await found.check()
        except TimeoutError as error:
            raise ServerError(f"{self.url} did not answer what it was probed with within {OPEN_S:g} s") from error
        self._health = Health(time.monotonic())
        return found.info

    async def _put(self, found: Transport) -> None:
        before = self._open
        if before is not None and before is not found:
            self._earlier = self.traffic
            self._open = found
            await before.aclose()
        self._open = found

    async def resume(self) -> Exception | None:
        """Has the server go on, where it can; answers why it could not."""
        try:
            await self.transport.resume()
        except Exception as error:  # it may be gone
            return error
        return None

    async def aclose(self) -> None:
        """Closes what is open."""
        if self._open is not None:
            await self._open.aclose()

    async def generate(self, request: Request, clock: Clock, timeout_s: float | None) -> Reply | None:
        """The reply; None where the server was taken out meanwhile. Raises TransportError."""
        asked = time.monotonic()
        with clock.move_on_after(timeout_s) as deadline:
            self._in_flight.add(deadline)
            try:
                reply = await self.transport.generate(request)
            except Exception:
                self._tally.failed += 1
                raise
            finally:
                self._in_flight.discard(deadline)
            answered = time.monotonic()
            self._health.heard(answered)
            self._tally.answer(answered - asked)
            return reply
        self._tally.failed += 1
        if deadline.expired:
            raise RequestTimeout(f"{self.url}: no answer within {timeout_s:g} s")
        return None

    async def alive(self) -> bool:
        """Asks the server how it is, until it is clear. Raises nothing."""
        asked = time.monotonic()
        async with self._checking:
            if self._clear_at > asked:
                return self._clear  # someone else has asked since
            while (clear := await self._answers()) is None:  # noqa: ASYNC110  # a server sets no event
                await anyio.sleep(self.check_every_s / 2)
            self._clear, self._clear_at = clear, time.monotonic()
            return clear

    async def _answers(self) -> bool | None:
        """Whether it lives; None where that is not clear yet."""
        health = self._health
        try:
            with anyio.fail_after(ANSWER_S):
                await self.transport.check()
        except NotSent as error:
            _log.warning("check_not_sent", server=self.url, error=str(error))
            return True  # that is no word of the server's
        except (TimeoutError, RequestTimeout) as error:
            self.why = str(error) or f"no answer within {ANSWER_S:g} s"
            health.silent()
        except RolloutError as error:
            self.why = str(error)
            health.refused()
        except Exception as error:  # a transport of another make may raise anything
            _log.warning("check_failed", server=self.url, exc_info=error)
            self.why = f"its check raised {type(error).__name__}"
            health.refused()
        else:
            health.well(time.monotonic())
            return True
        return False if health.dead(time.monotonic()) else None

    def drop(self) -> None:
        """Ends what is in flight: it goes elsewhere."""
        for deadline in list(self._in_flight):
            deadline.scope.cancel()


forward_names("rollout.servers.server")

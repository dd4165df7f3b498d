"""The weights that a served model samples from: which version, and since when."""

from __future__ import annotations

import anyio
import msgspec

from rollout.loop.deadlines import Clock
from rollout.moved import forward_members
from rollout.transport import InFlight

__all__ = ["InFlight", "Sent", "Weights", "WeightsState"]


class Sent(msgspec.Struct, frozen=True):
    """The weights in use when a request was sent."""

    version: str | None
    updates: int


class WeightsState(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes of one engine must agree on. See `Weights`."""

    version: str | None
    updates: int
    last_kept: int
    aborts: int = 0
    held: bool = False


class Weights(msgspec.Struct):
    """What is known of the weights in use, and whether anything may be sent."""

    version: str | None = None
    """As it was last named by `Engine.update_weights`; before that as the server named it, None where it does not."""
    updates: int = 0
    """How often they were updated from here: what staleness is counted in."""

    last_kept: int = 0
    """The last update that kept what was in flight, by its number; 0 where there was none."""
    aborts: int = 0
    """How often we had the servers end what was in flight."""
    clock: Clock = msgspec.field(default_factory=Clock)
    """Stands still while new requests are held back: deadlines of episodes and groups go by it."""
    _holds: set[str] = msgspec.field(default_factory=set)
    """Why new requests are held back: a pause, an update."""
    _settled: anyio.Event | None = None
    """There while there are any."""

    @property
    def held(self) -> bool:
        """Whether new requests are held back."""
        return self._settled is not None

    async def settled(self) -> None:
        """Waits while the servers are paused or updated: what is sent meanwhile might be sampled under either."""
        while self._settled is not None:
            await self._settled.wait()

    def hold(self, reason: str) -> None:
        """Holds back new requests. May be called twice."""
        self._holds.add(reason)
        if self._settled is None:
            self._settled = anyio.Event()
            self.clock.stop()

    def release(self, reason: str) -> None:
        """Ends `hold`; they go out once there is no reason left. May be called twice."""
        self._holds.discard(reason)
        if not self._holds and self._settled is not None:
            self._settled.set()
            self._settled = None
            self.clock.go()

    @property
    def state(self) -> WeightsState:
        """What another process that samples from them must know."""
        return WeightsState(
            version=self.version,
            updates=self.updates,
            last_kept=self.last_kept,
            aborts=self.aborts,
            held=self.held,
        )

    def follow(self, state: WeightsState) -> None:
        """Takes over what another process knows of them."""
        self.version, self.updates, self.last_kept = state.version, state.updates, state.last_kept
        self.aborts = state.aborts
        (self.hold if state.held else self.release)("the engine")

    def updated(self, version: str, in_flight: InFlight) -> None:
        """The server has them now."""
        self.version = version
        self.updates += 1
        if in_flight == "keep":
            self.last_kept = self.updates

    def now(self) -> Sent:
        """What a request is sent under."""
        return Sent(self.version, self.updates)

    def sampled(self, sent: Sent, *, aborted: bool) -> str | None:
        """The version of the tokens that answer it, for a server that reports none, when they have just arrived.

        A request that overtook the pause was queued there and sampled after the update, whole, unless the update
        kept what was in flight: then its tokens may be of both, and carry the older. Staleness is never understated.
        """
        whole = self.last_kept <= sent.updates and not aborted
        return self.version if whole else sent.version

    def salt(self, own: str | None) -> str | None:
        """The cache salt of a request: cache entries of other weights must not be reused, by any server."""
        if not self.updates or self.version is None:
            return own
        return f"{own}/{self.version}" if own else self.version


forward_members(Weights)

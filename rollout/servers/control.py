"""The weights that an engine samples from, as a trainer holds and changes them: for the servers, and every process.

Nothing new is sent, by any process, from before the servers are told to pause until after they go on. An update is a
pause of its own beside the caller's: pause, load, resume.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from rollout.servers.fleet import UPDATE, Fleet
from rollout.transport import InFlight


class WeightControl:
    """Pauses and updates the servers of one engine, and has its processes stand as this one does."""

    def __init__(self, fleet: Fleet, tell: Callable[[], Awaitable[None]], on_updated: Callable[[], None]) -> None:
        """`tell` has the other processes follow `fleet.state` and its weights.

        `on_updated` is called after each update, however it ended, before anything is sent again.
        """
        self._fleet, self._tell, self._on_updated = fleet, tell, on_updated
        self._updating = anyio.Lock()
        self._news = anyio.Event()
        """The servers have changed, and the processes do not know it yet."""

    def __repr__(self) -> str:
        return f"<WeightControl of {self._fleet}>"

    def servers_changed(self) -> None:
        """Has `keep_telling` tell it."""
        self._news.set()

    async def keep_telling(self) -> None:
        """Has the processes use the servers that are up here, at once when that changes. Never returns."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            await self._tell()

    async def pause(self, in_flight: InFlight) -> None:
        """Has the servers stop sampling until `resume`."""
        await self._pause(in_flight, "caller")
        await self._tell()

    async def resume(self, reason: str = "caller") -> None:
        """Goes on after `pause`."""
        await self._fleet.resume(reason=reason)
        await self._tell()

    async def _pause(self, in_flight: InFlight, reason: str) -> None:
        self._fleet.weights.hold(reason)
        try:
            await self._tell()
            await self._fleet.pause(in_flight, reason=reason)
        except BaseException:
            await self._give_up(reason)
            raise

    async def update(self, version: str, path: str | None, in_flight: InFlight) -> None:
        """Has the servers load the folder's weights, if one is given, and names their version."""
        async with self._updating:
            await self._pause(in_flight, UPDATE)
            try:
                await self._fleet.update_weights(version, path, in_flight=in_flight)
            except Exception:
                await self._go_on()
                raise
            except BaseException:
                # A trainer that is interrupted waits for nothing, and leaves no server paused.
                await self._give_up(UPDATE)
                raise
            await self._go_on()

    async def _go_on(self) -> None:
        self._on_updated()
        await self.resume(UPDATE)

    async def _give_up(self, reason: str) -> None:
        self._fleet.end_pause(reason)
        with anyio.CancelScope(shield=True):
            await self._tell()

"""Carries out what `server_life` decides: the shell around it.

Actions run in tasks of their own, so that an update whose caller is cancelled is still carried through: a server that
was told to load does so whether or not anybody waits for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import anyio

from rollout.errors import ConnectionFailed, RolloutError
from rollout.log import get_logger
from rollout.servers.life import Ask, Do, Lives, Load, Open, Pause, Resume
from rollout.servers.server import Server
from rollout.transport import ServerInfo

#: How long servers that are still paused by us may take to go on, where the engine ends.
LEAVE_S = 5.0

_log = get_logger(__name__)


class Reconciler:
    """The servers of a fleet, brought and kept level."""

    def __init__(
        self,
        servers: Sequence[Server],
        join: Callable[[Server, ServerInfo], None],
        on_change: Callable[[], None],
    ) -> None:
        """`join` raises ConfigError for a server that is not like the others; `on_change` is called upon any change."""
        self.servers = servers
        self.lives = Lives(len(servers), again_s=min((server.check_every_s for server in servers), default=1.0))
        self.errors: dict[int, Exception] = {}
        """Why servers could not be opened, by index, until they could."""
        self._join = join
        self._on_change = on_change
        self._acting: dict[Do, asyncio.Task[None]] = {}
        self._up = [False] * len(servers)
        self._why = [""] * len(servers)
        self._changed = anyio.Event()
        self._closed = False
        self._say = _log.warning
        self._unsaid: dict[int, str] | None = None
        """Why servers stay out, while whoever connects may still say it in an error."""

    def __repr__(self) -> str:
        return f"<Reconciler {self.lives}>"

    def step(self) -> None:
        """Begins what is due, gives up what is outdated, and tells of what has changed."""
        if self._closed:
            return
        for do in self.lives.due(time.monotonic()):
            self._acting[do] = asyncio.create_task(self._act(do))
        for do in list(self._acting):
            if self.lives.servers[do.server].doing is not do:
                self._acting.pop(do).cancel()
        for at, life in enumerate(self.lives.servers):
            if life.up != self._up[at]:
                self._up[at] = life.up
                self._tell_of(at)
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
        self._on_change()

    @property
    def following(self) -> bool:
        """Whether another fleet has the word on these servers."""
        return self.lives.following

    def follow(self, ups: Sequence[int]) -> None:
        """See `rollout.servers.life.Lives.follow`."""
        self._say = _log.debug  # the engine says it, once for all processes
        for at, up in enumerate(ups):
            if not up:
                self._why[at] = "the engine has taken it out"
        self.lives.follow(ups, time.monotonic())
        self.step()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for what comes of steps."""
        while not condition():
            await self._changed.wait()

    async def asked(self, ask: Ask) -> None:
        """Waits until it is decided. Raises what it failed of."""
        self.step()
        await self.until(lambda: ask.decided)
        if ask.error is not None:
            raise ask.error

    async def watch(self) -> None:
        """Looks at every server again and again. Never returns, and raises nothing."""
        async with anyio.create_task_group() as group:
            for at in range(len(self.servers)):
                group.start_soon(self._watch_one, at)
            while True:
                await anyio.sleep(min(server.check_every_s for server in self.servers))
                self.step()

    async def _watch_one(self, at: int) -> None:
        while True:
            await anyio.sleep(self.servers[at].check_every_s)
            if self.lives.servers[at].open:
                await self.is_alive(at)

    async def is_alive(self, at: int) -> bool:
        """Asks a server how it is; it is out where it is dead."""
        opened = self.lives.servers[at].open
        if await self.servers[at].alive():
            return True
        if opened and self.lives.servers[at].open:
            if self.lives.servers[at].up:
                self.servers[at].deaths += 1
            self._why[at] = why = f"it does not answer that it is well: {self.servers[at].why}"
            self.lives.lost(at, f"{self.servers[at].url}: {why}", time.monotonic())
            self.step()
        return False

    async def aclose(self) -> None:
        """Ends every action, has no server paused by us, and closes all."""
        self._closed = True
        acting = list(self._acting.values())
        for task in acting:
            task.cancel()
        await asyncio.gather(*acting, return_exceptions=True)
        paused = [at for at, life in enumerate(self.lives.servers) if life.paused is not False]
        with anyio.move_on_after(LEAVE_S):
            async with anyio.create_task_group() as group:
                for at in paused:
                    group.start_soon(self._leave, self.servers[at])
        for server in self.servers:
            await server.aclose()

    async def _leave(self, server: Server) -> None:
        if (error := await server.resume()) is not None:
            _log.warning("left_paused", server=server.url, why=str(error))

    async def _act(self, do: Do) -> None:
        try:
            await self._carry_out(do)
        except asyncio.CancelledError:
            if not self._closed and self.lives.servers[do.server].doing is do:  # by a transport of another make
                self._failed(do, ConnectionFailed(f"{self.servers[do.server].url}: cancelled"))
            raise
        except Exception as error:
            if not isinstance(error, RolloutError):
                _log.warning("server_action_failed", server=self.servers[do.server].url, exc_info=error)
            self._failed(do, error)
        else:
            self._acting.pop(do, None)
            if isinstance(do.action, Open):
                self.errors.pop(do.server, None)
            self.lives.done(do, time.monotonic())
            self.step()

    def _failed(self, do: Do, error: Exception) -> None:
        self._acting.pop(do, None)
        self._note(do, error)
        self.lives.failed(do, error, time.monotonic())
        self.step()

    async def _carry_out(self, do: Do) -> None:
        server = self.servers[do.server]
        match do.action:
            case Open():
                if self.lives.servers[do.server].paused is not False:
                    # It was lost with a pause of ours: it would answer nothing that it is probed with.
                    await server.resume()
                self._join(server, await server.open())
            case Load(version=version, path=path):
                await server.transport.update_weights(version, path)
            case Pause(mode=mode):
                await server.transport.pause(mode)
            case Resume():
                await server.transport.resume()

    def _note(self, do: Do, error: Exception) -> None:
        """A server that stays out says why, once for each reason."""
        at, why = do.server, str(error)
        if isinstance(do.action, Open):
            self.errors[at] = error
        if not self._up[at] and self._why[at] != why:
            if self._unsaid is not None:
                self._unsaid[at] = why
            else:
                self._say("server_stays_out", server=self.servers[at].url, why=why)
        self._why[at] = why

    def hold_back(self) -> None:
        """Says nothing of servers that stay out until `speak`: an error may be about to say it."""
        self._unsaid = {}

    def speak(self) -> None:
        """Says what was held back and still holds."""
        unsaid, self._unsaid = self._unsaid or {}, None
        for at, why in unsaid.items():
            if not self._up[at]:
                self._say("server_stays_out", server=self.servers[at].url, why=why)

    def _tell_of(self, at: int) -> None:
        server, life = self.servers[at], self.lives.servers[at]
        if life.up:
            self._why[at] = ""
            if life.life > 1:
                self._say("server_back", server=server.url)
        else:
            server.drop()
            self._say("server_out", server=server.url, why=self._why[at])

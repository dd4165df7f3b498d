"""Several servers as one transport: each trajectory has its server, and goes on at another when that dies.

A request holds the whole prompt, so whatever was in flight on a dead server is sent to another as it is: the
trajectory goes on from its last finished turn. With no server left requests wait, up to a limit. A server that
comes back is given the weights that the others have, and takes new trajectories.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

import anyio
import msgspec
import structlog

from rollout.errors import (
    ConfigError,
    ConnectionFailed,
    ModelNotFound,
    NoServerLeft,
    RolloutError,
    ServerBusy,
    ServerError,
    TransportError,
)
from rollout.histogram import Histogram, added
from rollout.member import Member
from rollout.placement import Placement
from rollout.transport import (
    InFlight,
    MessagePrompt,
    Reply,
    Request,
    ServerInfo,
    ServerLoad,
    Traffic,
    Transport,
)

#: A request that was in flight on so many servers when they died may be what kills them: it is not sent again.
MAX_DEATHS = 3

#: What servers of one fleet must have in common: a trajectory may go on at any of them.
_ALIKE = ("model", "dialect", "token_route", "keeps_stop_token")

_log = structlog.get_logger(__name__)


class ServerState(msgspec.Struct, kw_only=True):
    """One server of a fleet, as it stands."""

    url: str
    up: bool
    deaths: int
    trajectories: int = 0


class FleetStanding(msgspec.Struct, frozen=True, kw_only=True):
    """What fleets of the same servers, in several processes, must agree on."""

    pushed: tuple[str, str | None] | None = None
    """The version and the folder that the servers were last told to load."""
    paused: bool = False
    out: list[int] = []
    """Servers that are not to be used, by index: one may have missed the last weights."""


class Fleet(Transport):
    """One or more servers of one model as a transport. See `rollout.transport.Transport`."""

    def __init__(self, members: Sequence[Member], *, wait_s: float) -> None:
        """`wait_s` is how long requests wait where no server is left."""
        self._members = members
        self._placement = Placement(len(members))
        self._wait_s = wait_s
        self._pushed: tuple[str, str | None] | None = None
        """The version and the folder that the servers were last told to load."""
        self._paused = False
        """Between `pause` and `resume`, where no server may come back in between."""
        self._returned = anyio.Event()
        self._info: ServerInfo | None = None

    def __repr__(self) -> str:
        return f"<Fleet of {len(self._members)}, {sum(self._placement.up)} up>"

    @property
    def states(self) -> list[ServerState]:
        """The servers as they stand."""
        up = self._placement.up
        return [ServerState(url=member.url, up=up[at], deaths=member.deaths) for at, member in enumerate(self._members)]

    @property
    def loads(self) -> list[int]:
        """Trajectories on each server."""
        return list(self._placement.loads)

    @property
    def standing(self) -> FleetStanding:
        """What another fleet of the same servers must know of this one."""
        out = [at for at, up in enumerate(self._placement.up) if not up]
        return FleetStanding(pushed=self._pushed, paused=self._paused, out=out)

    def follow(self, standing: FleetStanding) -> None:
        """Stands as another fleet of the same servers does. A server that is out there comes back here by itself."""
        self._pushed, self._paused = standing.pushed, standing.paused
        for at in standing.out:
            self._take_out(at, "it was taken out by the engine")

    async def connect(self) -> ServerInfo:
        """Connects to all; one that is not there is out, until it is. Raises ServerError where none is there.

        Raises ConfigError where they do not serve the same.
        """
        missing: list[tuple[int, ServerError]] = []
        known: list[int] = []
        for at, member in enumerate(self._members):
            try:
                info = await member.open()
                self._must_be_alike(member, info)
                known += [info.max_model_len] if info.max_model_len is not None else []
            except ServerError as error:
                missing.append((at, error))
        if self._info is None:
            raise missing[0][1]
        self.info = self._info
        # The shortest context is the fleet's: a trajectory must fit any server.
        self._info.max_model_len = min(known, default=None)
        for at, why in missing:
            self._take_out(at, str(why))
        return self._info

    def _must_be_alike(self, member: Member, info: ServerInfo) -> None:
        first = self._info = self._info or msgspec.structs.replace(info)
        for field in _ALIKE:
            mine, theirs = getattr(first, field), getattr(info, field)
            if mine != theirs:
                raise ConfigError(f"{member.url} is not like the other servers: {field} is {theirs!r}, not {mine!r}")

    def _must_be_long_enough(self, member: Member, info: ServerInfo) -> None:
        least = self._info.max_model_len if self._info is not None else None
        length = info.max_model_len
        if least is not None and length is not None and length < least:
            raise ConfigError(f"{member.url} has a context of {length} tokens, and the others of {least} at least")

    async def generate(self, request: Request) -> Reply:
        """Completes the prompt at the trajectory's server, or at another when that dies. Raises TransportError."""
        deaths = 0
        while True:
            at = await self._place(request)
            member = self._members[at]
            try:
                reply = await member.generate(request)
                if reply is not None:
                    return reply
            except (ConnectionFailed, ServerBusy, ModelNotFound) as error:
                if await member.alive():
                    raise
                self._take_out(at, str(error))
            deaths += 1
            if deaths >= MAX_DEATHS:
                raise ConnectionFailed(f"this request was in flight on {deaths} servers when they died")

    async def _place(self, request: Request) -> int:
        while True:
            at = self._placement.place(request.session_id, request.group_id, request.group_size)
            if at is not None:
                return at
            await self._returned.wait()

    def release(self, session_id: str) -> None:
        """See `rollout.transport.Transport`."""
        self._placement.release(session_id)

    @property
    def traffic(self) -> Traffic:
        """See `rollout.transport.Transport`."""
        parts = [member.traffic for member in self._members]
        return Traffic(sum(part.sent for part in parts), sum(part.received for part in parts))

    async def first_tokens(self) -> Histogram | None:
        """See `rollout.transport.Transport`. Of the servers that are up."""
        up = [member.transport for member, is_up in zip(self._members, self._placement.up, strict=True) if is_up]
        parts = [await transport.first_tokens() for transport in up]
        return added([part for part in parts if part is not None])

    async def tokenize(self, prompt: MessagePrompt, *, add_generation_prompt: bool) -> list[int]:
        """See `rollout.transport.Transport`."""
        return await self._any().tokenize(prompt, add_generation_prompt=add_generation_prompt)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """See `rollout.transport.Transport`."""
        return await self._any().detokenize(ids)

    async def aclose(self) -> None:
        for member in self._members:
            await member.aclose()

    async def check(self) -> None:
        """See `rollout.transport.Transport`."""
        if not any(self._placement.up):
            raise ConnectionFailed("no server is up")

    async def load(self) -> ServerLoad:
        """All servers' together: sums, and the fullest cache. Raises TransportError where none can be asked."""
        up = [member for member, is_up in zip(self._members, self._placement.up, strict=True) if is_up]
        loads = [await member.transport.load() for member in up]
        return ServerLoad(
            running=_sum([load.running for load in loads]),
            waiting=_sum([load.waiting for load in loads]),
            cache_usage=max((load.cache_usage for load in loads if load.cache_usage is not None), default=None),
            preemptions=_sum([load.preemptions for load in loads]),
        )

    async def watch(self, on_gone: Callable[[NoServerLeft], None]) -> None:
        """Looks at every server again and again; `on_gone` is called when none came back in time. Never returns."""
        async with anyio.create_task_group() as group:
            for at in range(len(self._members)):
                group.start_soon(self._watch_one, at)
            gone_since: float | None = None
            while True:
                await anyio.sleep(min(member.check_every_s for member in self._members))
                if any(self._placement.up):
                    gone_since = None
                    continue
                if gone_since is None:
                    gone_since = time.monotonic()
                    _log.warning("no_server_left", waiting_s=self._wait_s, servers=[m.url for m in self._members])
                if time.monotonic() - gone_since > self._wait_s:
                    on_gone(NoServerLeft(f"no server came back within {self._wait_s:g} s: {self._urls()}"))
                    gone_since = None

    async def _watch_one(self, at: int) -> None:
        member = self._members[at]
        while True:
            await anyio.sleep(member.check_every_s)
            alive = await member.alive()
            if self._placement.up[at] and not alive:
                self._take_out(at, "it does not answer that it is well")
            elif not self._placement.up[at] and alive and not self._paused:
                await self._bring_back(at)

    def _take_out(self, at: int, why: str) -> None:
        if not self._placement.up[at]:
            return
        self._placement.up[at] = False
        self._members[at].drop()
        _log.warning("server_out", server=self._members[at].url, why=why)

    async def _bring_back(self, at: int) -> None:
        """Gives the server the others' weights first: a new process has those that it started with."""
        member = self._members[at]
        try:
            info = await member.open()
            self._must_be_alike(member, info)
            self._must_be_long_enough(member, info)
            if self._pushed is not None:
                version, path = self._pushed
                if path is None:
                    raise ConfigError("its weights were loaded by someone else, so they cannot be loaded again here")
                await member.transport.update_weights(version, path)
        except RolloutError as error:
            (_log.debug if member.refused else _log.warning)("server_stays_out", server=member.url, why=str(error))
            member.refused = True
            return
        member.refused = False
        self._placement.up[at] = True
        returned, self._returned = self._returned, anyio.Event()
        returned.set()
        _log.warning("server_back", server=member.url)

    async def pause(self, mode: InFlight = "keep") -> None:
        """See `rollout.transport.Transport`."""
        self._paused = True
        await self._on_all(lambda member: member.transport.pause(mode))

    async def resume(self) -> None:
        """See `rollout.transport.Transport`."""
        self._paused = False
        await self._on_all(lambda member: member.transport.resume())

    async def update_weights(self, version: str, path: str | None) -> None:
        """See `rollout.transport.Transport`."""
        await self._on_all(lambda member: member.transport.update_weights(version, path))
        self._pushed = version, path

    async def _on_all(self, act: Callable[[Member], Awaitable[None]]) -> None:
        """Acts on every server that is up, at once; those that fail where others do not are taken out.

        Raises the first error where it succeeds on none, and ConfigError.
        """
        errors: list[tuple[int, RolloutError]] = []
        there = [at for at, up in enumerate(self._placement.up) if up]

        async def one(at: int) -> None:
            try:
                await act(self._members[at])
            except (TransportError, ConfigError) as error:
                errors.append((at, error))

        async with anyio.create_task_group() as group:
            for at in there:
                group.start_soon(one, at)
        if not there:
            raise ConnectionFailed(f"no server is up: {self._urls()}")
        refused = [error for _, error in errors if isinstance(error, ConfigError)]
        if refused or len(errors) == len(there):
            raise refused[0] if refused else errors[0][1]
        for at, error in errors:
            self._take_out(at, str(error))

    def _any(self) -> Transport:
        up = self._placement.up
        return self._members[up.index(True) if any(up) else 0].transport

    def _urls(self) -> str:
        return ", ".join(member.url for member in self._members)


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None

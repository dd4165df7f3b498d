"""One or more servers as one transport: each trajectory has its server, and goes on at another when that dies.

A request holds the whole prompt, so whatever was in flight on a dead server is sent to another as it is: the
trajectory goes on from its last finished turn. With no server left requests wait, up to a limit. A server that
comes back is given the weights that the others have, and takes new trajectories: `rollout.servers.life` decides that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
import msgspec

from rollout.errors import (
    ConfigError,
    ConnectionFailed,
    ModelNotFound,
    NoServerLeft,
    PromptTooLong,
    RequestTimeout,
    RolloutError,
    ServerBusy,
    ServerError,
    TransportError,
)
from rollout.histogram import Histogram, added
from rollout.log import get_logger
from rollout.loop.deadlines import Clock
from rollout.moved import forward_members
from rollout.request import MessagePrompt, Reply, Request
from rollout.servers.alike import join
from rollout.servers.completion import with_version
from rollout.servers.placement import Placement
from rollout.servers.reconciler import Reconciler
from rollout.servers.server import Server
from rollout.servers.tally import Tally
from rollout.servers.weights import Weights
from rollout.transport import InFlight, ServerInfo, ServerLoad, Traffic, Transport

#: A request that was in flight on so many servers when they died may be what kills them: it is not sent again.
MAX_DEATHS = 3

#: With a server up, how long a run waits for the others before it begins; they come later then.
START_S = 5.0

#: The pause of an update, beside the caller's own.
UPDATE = "update"

Answer = TypeVar("Answer")

_log = get_logger(__name__)


class ServerState(msgspec.Struct, kw_only=True):
    """One server of a fleet, as it stands."""

    url: str
    up: bool
    deaths: int
    trajectories: int = 0
    phase: str = ""
    """What is being done with it: see `rollout.servers.life.Phase`."""


class FleetState(msgspec.Struct, frozen=True, kw_only=True):
    """What fleets of the same servers, in several processes, must agree on."""

    pushed: tuple[str, str | None] | None = None
    """The version and the folder that the servers were last told to load."""
    paused: bool = False
    """Whether they are, so that what is in flight there makes no progress."""
    up: list[int] = []
    """For each server that may be used which life of it that is, and 0 for the others."""


class Fleet(Transport):
    """One or more servers of one model as a transport. See `rollout.transport.Transport`."""

    def __init__(self, servers: Sequence[Server], *, wait_s: float, start_wait_s: float | None = None) -> None:
        """`wait_s` is how long requests wait where no server is left.

        `start_wait_s` is how long `connect` waits for a first server; None tries each once.
        """
        self.weights = Weights()
        self.clock = Clock()
        """Stands still while the servers are paused by us: deadlines of requests go by it."""
        self.request_timeout_s: float | None = None
        self.on_change: Callable[[], None] = lambda: None
        """Called when `state` has changed."""
        self._servers = servers
        self._placement = Placement(len(servers))
        self._placement.up = [False] * len(servers)
        self._reconciler = Reconciler(servers, self._join, self._changed)
        self._wait_s, self._start_wait_s = wait_s, start_wait_s
        self._in_flight: InFlight = "keep"
        """What the update under way does with requests."""
        self._updated = 0
        """The number of the weights that `weights` knows of."""
        self._paused_elsewhere = False
        self._returned = anyio.Event()
        self._given_up = 0
        """How often those that wait for that were given up."""
        self._told = self.state
        self._info: ServerInfo | None = None
        self._started = False

    def __repr__(self) -> str:
        return f"<Fleet of {len(self._servers)}, {sum(self._placement.up)} up>"

    @property
    def states(self) -> list[ServerState]:
        """The servers as they stand."""
        lives = self._reconciler.lives.servers
        return [
            ServerState(url=server.url, up=life.up, deaths=server.deaths, phase=life.phase.value)
            for server, life in zip(self._servers, lives, strict=True)
        ]

    @property
    def loads(self) -> list[int]:
        """Trajectories on each server."""
        return list(self._placement.loads)

    @property
    def tallies(self) -> list[Tally]:
        """What was asked of each server from here."""
        return [server.tally for server in self._servers]

    @property
    def state(self) -> FleetState:
        """What another fleet of the same servers must know of this one."""
        lives = self._reconciler.lives
        pushed = (lives.weights.version, lives.weights.path) if lives.weights.number else None
        return FleetState(pushed=pushed, paused=lives.paused, up=lives.ups)

    def follow(self, state: FleetState) -> None:
        """Uses the servers that another fleet of the same ones says are up. That one loads weights, and pauses."""
        self._paused_elsewhere = state.paused
        self._reconciler.follow(state.up)

    async def connect(self) -> ServerInfo:
        """Connects to all at once; one that is not there is out, until it is.

        Raises ServerError where none is there, naming each with its error, and ConfigError where one cannot be used.
        """
        if self._started:
            return self.info
        deadline = anyio.current_time() + (self._start_wait_s or 0.0)
        self._reconciler.hold_back()
        while True:
            await self._first_up()
            refused = [error for error in self._reconciler.errors.values() if isinstance(error, ConfigError)]
            if refused:
                raise refused[0]
            if self._info is not None and any(self._placement.up):
                break
            left_s = deadline - anyio.current_time()
            if left_s <= 0:
                raise ServerError(self._why_none())
            self._reconciler.speak()
            await anyio.sleep(min(left_s, *(server.check_every_s for server in self._servers)))
        self._reconciler.speak()
        self._started, self.info = True, self._info
        self.weights.version = self.info.weight_version
        return self.info

    async def _first_up(self) -> None:
        """Tries all; returns when each has been tried, or a while after the first is up."""
        lives = self._reconciler.lives.servers
        self._reconciler.step()
        await self._reconciler.until(lambda: any(life.up for life in lives) or not any(life.doing for life in lives))
        if any(life.up for life in lives):
            with anyio.move_on_after(START_S):
                await self._reconciler.until(lambda: not any(life.doing for life in lives))

    def _why_none(self) -> str:
        errors = self._reconciler.errors
        said = [str(errors[at]) if at in errors else f"{m.url} is not there" for at, m in enumerate(self._servers)]
        if len(said) == 1:
            return said[0]
        named = [text if m.url in text else f"{m.url}: {text}" for m, text in zip(self._servers, said, strict=True)]
        return f"none of {len(said)} servers can be used: {'; '.join(named)}"

    def _join(self, server: Server, info: ServerInfo) -> None:
        """A server was opened. Raises ConfigError where it is not like the others."""
        self._info = self._info or msgspec.structs.replace(info)
        join(self._info, info, server.url, started=self._started)

    def _changed(self) -> None:
        """Something has changed of the servers."""
        lives = self._reconciler.lives
        if lives.weights.number != self._updated:
            self._updated = lives.weights.number
            self.weights.updated(lives.weights.version, self._in_flight)
        if not lives.updating:
            self.weights.release("loading")
        (self.clock.stop if lives.paused or self._paused_elsewhere else self.clock.go)()
        if any(life.up > up for life, up in zip(lives.servers, self._placement.up, strict=True)):
            self._wake()
        self._placement.up = [life.up for life in lives.servers]
        if self._told != (now := self.state):
            self._told = now
            self.on_change()

    async def generate(self, request: Request) -> Reply:
        """Completes the prompt at the trajectory's server, or at another when that dies. Raises TransportError.

        It waits while the servers are paused or updated. Tokens of a server that names no version carry the one that
        it had when it sampled them.
        """
        deaths, weights = 0, self.weights
        while True:
            at = await self._place(request)
            server, deaths_before = self._servers[at], self._servers[at].deaths
            sent, salt = weights.now(), weights.salt(request.cache_salt)
            salted = request if salt == request.cache_salt else msgspec.structs.replace(request, cache_salt=salt)
            try:
                reply = await server.generate(salted, self.clock, self.request_timeout_s)
                if reply is not None:
                    return with_version(reply, weights.sampled(sent, aborted=reply.finish_reason == "abort"))
            except (ConnectionFailed, ServerBusy, ModelNotFound, PromptTooLong):  # it may be another server by now
                if await self._reconciler.is_alive(at):
                    raise
            deaths += server.deaths > deaths_before
            if deaths >= MAX_DEATHS:
                raise ConnectionFailed(f"this request was in flight on {deaths} servers when they died")

    async def _place(self, request: Request) -> int:
        while True:
            if self.weights.held:
                await self.weights.settled()
            at = self._placement.place(request.session_id, request.group_id, request.group_size)
            if at is not None:
                return at
            await self._wait_for_one()

    async def _wait_for_one(self) -> None:
        """Raises ConnectionFailed where those that wait were given up."""
        before = self._given_up
        await self._returned.wait()
        if self._given_up > before and not any(self._placement.up):
            raise ConnectionFailed(f"no server came back within {self._wait_s:g} s: {self._urls()}")

    def give_up(self) -> None:
        """Fails what waits for a server: for who outlives `NoServerLeft`."""
        self._given_up += 1
        self._wake()

    def _wake(self) -> None:
        returned, self._returned = self._returned, anyio.Event()
        returned.set()

    def release(self, session_id: str) -> None:
        """See `rollout.transport.Transport`."""
        self._placement.release(session_id)

    @property
    def traffic(self) -> Traffic:
        """See `rollout.transport.Transport`."""
        parts = [server.traffic for server in self._servers]
        return Traffic(sum(part.sent for part in parts), sum(part.received for part in parts))

    async def first_tokens(self) -> Histogram | None:
        """See `rollout.transport.Transport`. Of the servers that are up."""
        parts = await self._of_all(lambda transport: transport.first_tokens())
        return added([part for part in parts if part is not None])

    async def tokenize(self, prompt: MessagePrompt, *, add_generation_prompt: bool) -> list[int]:
        """See `rollout.transport.Transport`."""
        return await self._on_any(
            lambda transport: transport.tokenize(prompt, add_generation_prompt=add_generation_prompt)
        )

    async def detokenize(self, ids: Sequence[int]) -> str:
        """See `rollout.transport.Transport`."""
        return await self._on_any(lambda transport: transport.detokenize(ids))

    async def _on_any(self, ask: Callable[[Transport], Awaitable[Answer]]) -> Answer:
        """Asks a server that is up, and another when that dies."""
        while True:
            while not any(self._placement.up):
                await self._wait_for_one()
            at = self._placement.up.index(True)
            try:
                with self.clock.fail_after(self.request_timeout_s):
                    return await ask(self._servers[at].transport)
            except TimeoutError as error:
                raise RequestTimeout(f"{self._servers[at].url}: no answer in time") from error
            except (ConnectionFailed, ServerBusy):
                if await self._reconciler.is_alive(at):
                    raise

    async def _of_all(self, ask: Callable[[Transport], Awaitable[Answer]]) -> list[Answer]:
        """Asks all servers that are up at once. Raises TransportError where none answers."""
        answers: list[Answer] = []
        errors: list[RolloutError] = []

        async def one(transport: Transport) -> None:
            try:
                answers.append(await ask(transport))
            except (TransportError, ConfigError) as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            for server, up in zip(self._servers, self._placement.up, strict=True):
                if up:
                    group.start_soon(one, server.transport)
        if not answers:
            raise errors[0] if errors else ConnectionFailed(f"no server is up: {self._urls()}")
        return answers

    async def aclose(self) -> None:
        """Closes all. Reconciler that were paused from here go on: nobody else would resume them."""
        await self._reconciler.aclose()

    async def check(self) -> None:
        """See `rollout.transport.Transport`."""
        if not any(self._placement.up):
            raise ConnectionFailed("no server is up")

    async def load(self) -> ServerLoad:
        """All servers' together: sums, and the fullest cache.

        Raises TransportError where none can be asked, or none samples: what they say then is no measure.
        """
        if self.clock.stopped:
            raise TransportError("the servers are paused")
        loads = await self._of_all(lambda transport: transport.load())
        return ServerLoad(
            running=_sum([load.running for load in loads]),
            waiting=_sum([load.waiting for load in loads]),
            cache_usage=max((load.cache_usage for load in loads if load.cache_usage is not None), default=None),
            preemptions=_sum([load.preemptions for load in loads]),
        )

    async def watch(self, on_gone: Callable[[NoServerLeft], None]) -> None:
        """Looks at every server again and again; `on_gone` is called when none came back in time. Never returns."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._reconciler.watch)
            gone_since: float | None = None
            clock = self.weights.clock  # a pause of ours is no part of the wait
            while True:
                await anyio.sleep(min(server.check_every_s for server in self._servers))
                if any(self._placement.up) or self._reconciler.following:
                    gone_since = None
                    continue
                if gone_since is None:
                    gone_since = clock.now()
                    _log.warning("no_server_left", waiting_s=self._wait_s, servers=[m.url for m in self._servers])
                if clock.now() - gone_since > self._wait_s:
                    on_gone(NoServerLeft(f"no server came back within {self._wait_s:g} s: {self._urls()}"))
                    gone_since = None

    async def pause(self, mode: InFlight = "keep", *, reason: str = "caller") -> None:
        """See `rollout.transport.Transport`. Lasts until `resume` with the same reason; new requests wait here.

        Raises the first error where it succeeds on none, and ConfigError: nothing is paused then. Reconciler that fail
        where others do not are out.
        """
        self.weights.hold(reason)
        self.weights.aborts += mode == "abort"
        try:
            await self._reconciler.asked(self._reconciler.lives.pause(reason, mode))
        except BaseException:
            self.end_pause(reason)
            raise

    def end_pause(self, reason: str) -> None:
        """Nobody wants this pause any more. The servers are told in the background."""
        self._reconciler.lives.resume(reason)
        self._reconciler.step()
        self.weights.release(reason)

    async def resume(self, *, reason: str = "caller") -> None:
        """Ends `pause`; returns when the servers go on, unless another reason is left. One that cannot is out."""
        self.end_pause(reason)
        lives = self._reconciler.lives
        await self._reconciler.until(
            lambda: bool(lives.pauses) or not any(life.up and life.paused is not False for life in lives.servers)
        )

    async def update_weights(self, version: str, path: str | None, *, in_flight: InFlight = "keep") -> None:
        """See `rollout.transport.Transport`. Reconciler that fail where others do not are out, until they are level.

        Raises the first error where it succeeds on none: all go on with the weights that they had. Raises ConfigError
        where a server cannot be told to, also where others have them now.
        """
        lives = self._reconciler.lives
        await self._reconciler.until(lambda: not lives.updating)
        if not any(self._placement.up):
            raise ConnectionFailed(f"no server is up: {self._urls()}")
        # What the caller's own pause has frozen is not waited for: it goes on under the new weights.
        self._in_flight = "keep" if lives.pauses - {UPDATE} else in_flight
        self.weights.hold("loading")
        await self._reconciler.asked(lives.load(version, path))

    def _urls(self) -> str:
        return ", ".join(server.url for server in self._servers)


forward_members(Fleet)


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None

"""What each server of a fleet is to do next, from what is wanted of all and what it has. Pure.

Two things are wanted of every server at any moment, and both have one owner, here: the weights of the last update that
succeeded, and whether anybody wants a pause (the caller, an update; each by a name of its own, so that one that ends
leaves the other in force). Each server has some weights and is paused or not. `due` compares the two and answers what
to do now, one action a server at a time: open it, load, pause, resume. Whoever carries the actions out says how each
ended, and asks again. So nothing has to be remembered of what was under way when something else happened: a server is
brought level with what is wanted now, step by step, and is up only once nothing is left to be done. It is out as soon
as it is lost.

Worked example. Servers a and b are up with weights 1. b dies: it is out. It answers again: `due` says Open, then (what
it started with are weights 0) Load 1. While it loads, weights 2 are offered; a is told Load 2, b is not up and is not
asked. a has them: 2 is what is wanted from now on. b is done with 1, which is not what is wanted: Load 2. Meanwhile the
caller wants a pause: a is told Pause, and b, when it has loaded, too. Nothing is left to be done for b: it is up,
paused, with weights 2. The caller resumes: both are told Resume.

A request to all servers that are up, to load or to pause, is an `Ask`, which is decided when each of them has answered
or is lost. Those that failed where others obeyed are out, and come back level or not at all. Where all failed it is
withdrawn: the servers go on as they were. One whose answer was lost may have loaded all the same, so it is out until it
has been given the wanted weights again; those that it started with cannot be given again, and are taken for what it
has. A server that cannot be told (ConfigError) withdraws a pause, since nothing
else would keep it from sampling; weights that another server has loaded are not withdrawn, so it is out.

A follower is the fleet of a process that plays for an engine elsewhere. It loads and pauses nothing: it uses the
servers that the engine says are up. Each time that a server comes up it has another number, so that a follower knows
one that was away in between, and opens it anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from rollout.errors import ConfigError, ConnectionFailed, RequestRefused
from rollout.transport import InFlight

#: A server that refuses to be used is tried again after twice as long each time, up to this many seconds.
LONGEST_WAIT_S = 30.0

#: Looks that a follower leaves out a server which it found dead itself: by then the engine has said what is so.
FOLLOWER_LOOKS = 5

_STRICTNESS: tuple[InFlight, ...] = ("keep", "wait", "abort")


class Phase(StrEnum):
    """Where a server stands."""

    OUT = "out"
    CONNECTING = "connecting"
    LOADING = "loading"
    DRAINING = "draining"
    """It is being paused: what is in flight may have to end first."""
    PAUSED = "paused"
    RESUMING = "resuming"
    UP = "up"


class Open(msgspec.Struct, frozen=True):
    """Connect to the server, and see that it is well."""


class Load(msgspec.Struct, frozen=True):
    """Load weights. Number 0 are those that a server starts with."""

    number: int = 0
    version: str = ""
    path: str | None = None


class Pause(msgspec.Struct, frozen=True):
    """Stop sampling."""

    number: int
    mode: InFlight


class Resume(msgspec.Struct, frozen=True):
    """Go on sampling."""


Action = Open | Load | Pause | Resume

_PHASES = {Open: Phase.CONNECTING, Load: Phase.LOADING, Pause: Phase.DRAINING, Resume: Phase.RESUMING}


class Do(msgspec.Struct, frozen=True, eq=False):
    """One action of one server, from when it is begun."""

    server: int
    action: Action


class Ask(msgspec.Struct, eq=False):
    """Something that was asked of all servers that were up."""

    pending: set[int]
    """Those that have not answered."""
    obeyed: set[int] = msgspec.field(default_factory=set)
    errors: dict[int, Exception] = msgspec.field(default_factory=dict)
    decided: bool = False
    error: Exception | None = None
    """Why it failed, once it is decided."""

    def first_error(self) -> Exception | None:
        """The refusal to be told at all comes before every other."""
        refusals = [error for error in self.errors.values() if isinstance(error, ConfigError)]
        return next(iter(refusals or self.errors.values()), None)


class _Wanted(msgspec.Struct, eq=False):
    """A pause that somebody wants."""

    pause: Pause
    ask: Ask


class Life(msgspec.Struct, eq=False):
    """One server."""

    up: bool = False
    """Whether it is level with what is wanted, and so in use. Stays so while an update or a pause is carried out."""
    open: bool = False
    doing: Do | None = None
    weights: int = 0
    """The number of those that it has."""
    paused: bool | None = False
    """By us. None where it may be: it was told to, and has not said that it obeyed, or was lost meanwhile."""
    told: int = 0
    """The last pause that it obeyed."""
    life: int = 0
    """Counts how often it came up."""
    refusals: int = 0
    """How often in a row it was there and could not be used."""
    not_before: float = 0.0
    """When it may be opened again."""

    @property
    def phase(self) -> Phase:
        if self.doing is not None:
            return _PHASES[type(self.doing.action)]
        if not self.up:
            return Phase.OUT
        return Phase.PAUSED if self.paused else Phase.UP


class Lives:
    """All servers of a fleet, and what is wanted of them."""

    def __init__(self, servers: int, *, again_s: float = 1.0) -> None:
        """`again_s` is how soon a server that is out is tried again."""
        self.servers = [Life() for _ in range(servers)]
        self.weights = Load()
        """Those that every server that is up has, but while others are being loaded."""
        self._again_s = again_s
        self._offer: tuple[Load, Ask] | None = None
        """Weights that are being loaded, and are not the wanted ones yet."""
        self._pauses: dict[str, _Wanted] = {}
        self._numbers = 0
        self._followed: list[int] | None = None
        """As a follower: for each server that the engine says is up which life of it, 0 for the others."""

    def __repr__(self) -> str:
        return f"<Lives {[server.phase.value for server in self.servers]}, weights {self.weights.number}>"

    @property
    def updating(self) -> bool:
        """Whether it is undecided which weights are wanted."""
        return self._offer is not None

    @property
    def paused(self) -> bool:
        """Whether a pause is in force on every server that is up."""
        return any(wanted.ask.decided for wanted in self._pauses.values())

    @property
    def following(self) -> bool:
        """Whether an engine elsewhere says which servers are up."""
        return self._followed is not None

    @property
    def pauses(self) -> frozenset[str]:
        """Who wants a pause."""
        return frozenset(self._pauses)

    @property
    def ups(self) -> list[int]:
        """For each server that is up which life of it that is, 0 for the others: what a follower is told."""
        return [server.life if server.up else 0 for server in self.servers]

    # What is wanted

    def pause(self, reason: str, mode: InFlight) -> Ask:
        """Somebody wants a pause. Replaces what the same one wanted before; whoever waits for that waits for this."""
        self._numbers += 1
        before = self._pauses.get(reason)
        ask = Ask(set()) if before is None or before.ask.decided else before.ask
        ask.pending, ask.obeyed, ask.errors = self._up(), set(), {}
        self._pauses[reason] = _Wanted(Pause(self._numbers, mode), ask)
        self._judge_pauses(0.0)
        return ask

    def resume(self, reason: str) -> None:
        """Somebody wants no pause any more, whatever became of it."""
        wanted = self._pauses.pop(reason, None)
        if wanted is not None:
            wanted.ask.decided = True

    def load(self, version: str, path: str | None) -> Ask:
        """Offers weights to all servers that are up. Not while `updating`."""
        assert self._offer is None, "one update at a time"
        self._numbers += 1
        ask = Ask(self._up())
        self._offer = Load(self._numbers, version, path), ask
        self._judge_load(0.0)
        return ask

    def follow(self, ups: Sequence[int], now: float) -> None:
        """Uses the servers that the engine says are up, from now on."""
        first, self._followed = self._followed is None, list(ups)
        for at, (server, life) in enumerate(zip(self.servers, ups, strict=True)):
            if first and server.up and life:
                server.life = life  # it was opened before the engine had said anything
            elif server.life != life:
                if server.open or server.doing is not None:
                    self._out(at, now)
                server.not_before = now

    # What happened

    def due(self, now: float) -> list[Do]:
        """What is to be begun now. Each is answered by `done` or `failed`, unless another of its server follows it."""
        begun: list[Do] = []
        for at, server in enumerate(self.servers):
            self._obey(at)
            action = self._next(at, now)
            if action is not None:
                server.doing = Do(at, action)
                if isinstance(action, Pause) and not server.paused:
                    server.paused = None
                if isinstance(action, Open) and self._followed is not None:
                    server.life = self._followed[at]
                begun.append(server.doing)
            elif server.doing is None and server.open and not server.up and self._offer is None:
                server.up, server.refusals = True, 0
                server.life += self._followed is None
        self._judge_pauses(now)
        return begun

    def done(self, do: Do, now: float) -> None:
        """An action was carried out."""
        server = self.servers[do.server]
        if server.doing is not do:
            return
        server.doing = None
        match do.action:
            case Open():
                server.open = True
            case Load(number=number):
                server.weights = number
                if server.up and self._offer is not None:
                    self._offer[1].obeyed.add(do.server)
                    self._offer[1].pending.discard(do.server)
                    self._judge_load(now)
            case Pause(number=number):
                server.paused, server.told = True, number
                self._obey(do.server)
                self._judge_pauses(now)
            case Resume():
                server.paused = False

    def failed(self, do: Do, error: Exception, now: float) -> None:
        """An action failed."""
        at, server = do.server, self.servers[do.server]
        if server.doing is not do:
            return
        server.doing = None
        if isinstance(do.action, Open) and not isinstance(error, ConfigError):
            self._out(at, now)
        elif isinstance(do.action, Load) and server.up and self._offer is not None:
            self._answer(self._offer[1], at, error)
            self._judge_load(now)
        elif isinstance(do.action, Pause) and server.up:
            self._pause_failed(at, do.action, error, now)
        else:
            self._refuse(at, now)

    def lost(self, at: int, why: str, now: float) -> None:
        """A server does not answer any more."""
        wait_s = self._again_s * (FOLLOWER_LOOKS if self._followed is not None else 1)
        self._out(at, now, wait_s, why)

    # How it is decided

    def _up(self) -> set[int]:
        return {at for at, server in enumerate(self.servers) if server.up}

    def _next(self, at: int, now: float) -> Action | None:
        server = self.servers[at]
        if server.doing is not None:
            # Whoever gives up a pause must not wait until what is in flight has ended.
            given_up = isinstance(server.doing.action, Pause) and not self._pauses
            return Resume() if given_up else None
        if not server.open:
            return Open() if now >= server.not_before and self._may_open(at) else None
        if self._followed is not None or (self._offer is not None and not server.up):
            return None  # with an update under way it is not known yet what a server that joins has to load
        target = self.weights if self._offer is None or at in self._offer[1].errors else self._offer[0]
        if server.weights != target.number:
            return target
        if unmet := [one.pause for one in self._pauses.values() if self._must_pause(at, one)]:
            mode = max((pause.mode for pause in unmet), key=_STRICTNESS.index)
            return Pause(max(pause.number for pause in unmet), mode)
        return Resume() if not self._pauses and server.paused is not False else None

    def _may_open(self, at: int) -> bool:
        if self._followed is not None:
            return self._followed[at] != 0
        # Weights that somebody else has loaded cannot be loaded again from here.
        return not self.weights.number or self.weights.path is not None

    def _must_pause(self, at: int, wanted: _Wanted) -> bool:
        failed = at in wanted.ask.errors and not wanted.ask.decided  # what becomes of it the others decide
        return not failed and not self._obeys(at, wanted.pause)

    def _obeys(self, at: int, pause: Pause) -> bool:
        """On a server that is paused nothing is left to be frozen or waited for, but something to be aborted."""
        server = self.servers[at]
        return server.paused is True and (pause.mode != "abort" or server.told >= pause.number)

    def _obey(self, at: int) -> None:
        for wanted in self._pauses.values():
            if at in wanted.ask.pending and self._obeys(at, wanted.pause):
                wanted.ask.obeyed.add(at)
                wanted.ask.pending.discard(at)

    def _pause_failed(self, at: int, pause: Pause, error: Exception, now: float) -> None:
        asked = [one for one in self._pauses.values() if at in one.ask.pending and one.pause.number <= pause.number]
        for wanted in asked:
            self._answer(wanted.ask, at, error)
        if not asked and self._pauses:
            self._refuse(at, now)
        self._judge_pauses(now)

    def _answer(self, ask: Ask, at: int, error: Exception) -> None:
        if at in ask.pending:
            ask.errors[at] = error
            ask.pending.discard(at)

    def _judge_load(self, now: float) -> None:
        if self._offer is None or self._offer[1].pending:
            return
        (load, ask), self._offer = self._offer, None
        ask.decided = True
        if ask.obeyed:
            self.weights = load
            self._refuse_all(ask, now)
        elif self.weights.path is not None:
            for at, error in ask.errors.items():
                if self.servers[at].up and not isinstance(error, RequestRefused | ConfigError):
                    self._refuse(at, now)
        if not ask.obeyed or any(isinstance(error, ConfigError) for error in ask.errors.values()):
            ask.error = ask.first_error() or ConnectionFailed("no server is up")

    def _judge_pauses(self, now: float) -> None:
        for reason, wanted in list(self._pauses.items()):
            ask = wanted.ask
            if ask.pending or ask.decided:
                continue
            ask.decided = True
            error = ask.first_error()
            if error is not None and (isinstance(error, ConfigError) or not ask.obeyed):
                ask.error = error
                del self._pauses[reason]
            else:
                self._refuse_all(ask, now)

    def _refuse_all(self, ask: Ask, now: float) -> None:
        for at in ask.errors:
            if self.servers[at].up:
                self._refuse(at, now)

    def _refuse(self, at: int, now: float) -> None:
        """It is there, and cannot be used."""
        server = self.servers[at]
        wait_s = min(LONGEST_WAIT_S, self._again_s * 2.0**server.refusals)
        server.refusals += 1
        self._out(at, now, wait_s)

    def _out(self, at: int, now: float, wait_s: float | None = None, why: str = "it was lost") -> None:
        server = self.servers[at]
        server.up = server.open = False
        server.doing, server.weights, server.told = None, 0, 0
        server.paused = None if server.paused is not False else False
        server.not_before = now + (self._again_s if wait_s is None else wait_s)
        for wanted in self._pauses.values():
            wanted.ask.pending.discard(at)  # it samples nothing
        if self._offer is not None:
            self._answer(self._offer[1], at, ConnectionFailed(why))
        self._judge_load(now)
        self._judge_pauses(now)

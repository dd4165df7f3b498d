"""One environment or agent, one trajectory, to a `StopReason` or a `Failure`: never an exception.

It is made, plays (`rollout.play.driven`, `rollout.play.driving`), and is closed. Whatever happens, `close` is called
once, and what was sampled before is kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import anyio

from rollout.agent import Agent
from rollout.config import EngineConfig
from rollout.door import error_text, type_name
from rollout.errors import MessageError, TransportError
from rollout.log import get_logger
from rollout.observe.spans import Spans
from rollout.participant import Participant
from rollout.play.driven import Driven
from rollout.play.driving import Driving
from rollout.play.faults import EnvironmentFault
from rollout.play.host import Host, Hosts
from rollout.play.model import Asking, Endpoints, RolloutEnded
from rollout.play.route import FallbackRefused
from rollout.play.session import Session
from rollout.play.setups import Setups
from rollout.process.threads import contained
from rollout.records import Failure, FailureKind, Job, Rollout, StopReason, Timing, Turn
from rollout.tokens.verify import InvariantBroken, check_trajectory

_log = get_logger(__name__)

#: How long `close` may take when an episode is cancelled.
CLOSE_GRACE_S = 5.0


class Episode:
    """Plays one job. `stopping` asks it to end after its current turn."""

    def __init__(
        self,
        job: Job,
        make_env: Callable[[], Participant],
        session: Session,
        config: EngineConfig,
        *,
        hosts: Hosts,
        setups: Setups | None = None,
        asynchronous: bool = False,
        stopping: Callable[[], bool] = lambda: False,
        staleness: Callable[[], int] = lambda: 0,
        max_staleness: int | None = None,
        on_turn: Callable[[Turn], None] = lambda turn: None,
        endpoints: Endpoints | None = None,
        spans: Spans | None = None,
        name: str = "",
    ) -> None:
        """`staleness` counts the weight updates since the job was submitted.

        `setups` are what environments share; without them none is set up. An `asynchronous` environment is made in the
        task that it then lives in, too. `spans` are told of it by the environment's `name`.
        """
        self._make_env = make_env
        self._spans, self._name = spans, name
        self._session = session
        self._config = config
        self._setups = setups
        self._asynchronous = asynchronous
        self._stopping = stopping
        self._staleness = staleness
        self._max_staleness = max_staleness
        self._asking = Asking(session, config, refuse_ended=self._refuse_ended, on_turn=on_turn, endpoints=endpoints)
        self.rollout = job.rollout()
        self._env: Participant | None = None
        self._part: Driven | Driving | None = None
        self._while_whole = anyio.CancelScope()
        """Cancelled where the environment breaks between two calls."""
        self._host = Host(hosts, job.id, self._while_whole.cancel)
        self._deadline = session.clock.fail_after(config.episode_timeout_s)

    def __repr__(self) -> str:
        return f"<Episode {self.rollout.id} {len(self._session.turns)} turns>"

    async def play(self) -> Rollout:
        """Plays to the end. Raises only when it is cancelled from outside; `rollout` then holds what was played."""
        if self._spans is None:
            return await self._play_through()
        with self._spans.rollout(self.rollout, self._name):
            return await self._play_through()

    async def _play_through(self) -> Rollout:
        rollout, started = self.rollout, time.perf_counter()
        rollout.timing = Timing(started_at=time.time())
        failed: BaseException | None = None
        try:
            with self._deadline:
                with self._while_whole:
                    stop = await self._play()
                    self._refuse_stale()
                    rollout.stop = stop
                if self._asking.ended is not None:
                    raise self._asking.ended
                if self._host.broken is not None:
                    raise EnvironmentFault(_BROKEN, call="between calls") from contained(self._host.broken)
        except BaseException as error:
            failed = error
            if not isinstance(error, Exception):
                raise
        finally:
            self._asking.close()
            close_fault: EnvironmentFault | None = None
            # Shielded: a cancelled episode must still give back what its environment took.
            with anyio.CancelScope(shield=True):
                close_fault = await self._close(cancelled=failed is not None and not isinstance(failed, Exception))
            if failed is not None:
                rollout.stop, rollout.failure = None, self._failure(failed, close_fault)
            failed = close_fault = None  # their tracebacks hold this frame, and so the environment
            self._finish(time.perf_counter() - started)
        return rollout

    async def _play(self) -> StopReason:
        await self._session.turnstile.enter()  # thousands that start at once would each start a thread
        made = await self._made()
        if isinstance(made, Agent):
            self._asking.on_ended = self._while_whole.cancel
            self._part = Driving(made, self.rollout, self._asking, self._run)
        else:
            env: Any = made  # an `Env`, or whatever has its methods
            self._part = Driven(env, self.rollout, self._asking, self._config, self._host, self._call)
        return await self._part.play()

    async def _made(self) -> Participant:
        """The environment, with what it shares: before it is made where its class is known by then, else once it is."""
        setups, make_env = self._setups, self._make_env
        setup = setups.before(make_env) if setups is not None else None
        if setup is not None:
            with self._deadline.held():  # a pool of sandboxes may take minutes
                await setup.entered()
            make_env = setup.making(make_env)
        env: Participant = await self._call("__init__", make_env, in_task=self._asynchronous)
        self._env = env  # whatever becomes of it, it is closed
        if setup is None and setups is not None:
            setup = setups.of(env)
        if setup is not None:
            with self._deadline.held():
                await setup.share(env)
        return env

    def _refuse_ended(self) -> None:
        """Raises RolloutEnded where no further turn is wanted."""
        if self._stopping():
            raise _Stopped
        self._refuse_stale()

    def _refuse_stale(self) -> None:
        """Raises _Stale for a rollout that lived through more weight updates than it may."""
        if self._max_staleness is not None and self._staleness() > self._max_staleness:
            raise _Stale(f"{self._staleness()} weight updates since it was submitted, {self._max_staleness} allowed")

    async def _call(
        self, name: str, function: Callable[..., Any], *args: Any, limit_s: float | None = None, in_task: bool = False
    ) -> Any:
        started = time.perf_counter()
        try:
            limit_s = limit_s or self._config.step_timeout_s
            return await self._host.call(name, function, *args, limit_s=limit_s, in_task=in_task)
        finally:
            self.rollout.timing.env_s += time.perf_counter() - started

    async def _run(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Calls an agent's `run`, which only the episode's deadline bounds. Its own time is what no turn took."""
        started, busy_s = time.perf_counter(), self._asking.busy_s
        try:
            return await self._host.call(name, function, *args)
        finally:
            took_s = time.perf_counter() - started - (self._asking.busy_s - busy_s)
            self.rollout.timing.env_s += max(0.0, took_s)

    async def _close(self, *, cancelled: bool) -> EnvironmentFault | None:
        """Closes the environment, whatever happened. The rollout's outcome stands, if this fails: returns how."""
        limit_s = self._config.close_timeout_s
        if cancelled:
            limit_s = CLOSE_GRACE_S if limit_s is None else min(limit_s, CLOSE_GRACE_S)
        return await self._host.close(self._env, limit_s)

    def _failure(self, error: BaseException, close_fault: EnvironmentFault | None) -> Failure:
        turn = len(self._session.turns) + 1
        kind, message = _classify(error)
        if kind is FailureKind.INTERNAL:
            _log.error("internal_error", rollout=self.rollout.id, exc_info=error)
        if not isinstance(error, EnvironmentFault):
            return Failure(kind=kind, message=message, error=type_name(error), turn=turn)
        raised = error.raised
        if isinstance(raised, asyncio.CancelledError) and close_fault is not None and close_fault.raised is not None:
            # A context that it holds cancelled it, and said why when it was left.
            raised = close_fault.raised
            message = f"{message}; {close_fault}"
        if raised is not None:
            text = f"{type_name(raised)}: {error_text(raised)}"
            _log.warning("environment_raised", rollout=self.rollout.id, call=error.call, error=text, exc_info=raised)
            return Failure(kind=kind, message=message, error=type_name(raised), turn=turn)
        name = "TimeoutError" if kind is FailureKind.TIMEOUT else type_name(error)
        return Failure(kind=kind, message=message, error=name, turn=turn)

    def _finish(self, wall_s: float) -> None:
        rollout, tree = self.rollout, self._session.trajectory
        rollout.turns = self._session.turns
        rollout.messages = self._part.messages if self._part is not None else []
        rollout.roots, rollout.nodes, rollout.leaves = tree.roots, tree.nodes, tree.leaves
        rollout.staleness = self._staleness()
        rollout.timing.wall_s = wall_s
        rollout.timing.request_s = sum((turn.request_s for turn in rollout.turns), 0.0)
        if self._config.verify and rollout.failure is None:
            try:
                check_trajectory(tree, sum(turn.completion_tokens for turn in rollout.turns))
            except InvariantBroken as error:
                rollout.stop = None
                rollout.failure = Failure(kind=FailureKind.INVARIANT, message=str(error), error="InvariantBroken")


#: What is said of an environment whose own context cancelled it while it was not called.
_BROKEN = "a task group, timeout or scope that the environment holds between its calls cancelled it"


class _Stopped(RolloutEnded):
    """The run is stopping: no further turn."""


class _Stale(RolloutEnded):
    """The weights changed too often since the rollout was submitted."""


def _classify(error: BaseException) -> tuple[FailureKind, str]:
    match error:
        case EnvironmentFault():
            return error.kind, str(error)
        case TransportError():
            return FailureKind.TRANSPORT, str(error)
        case FallbackRefused():
            return FailureKind.FALLBACK, str(error)
        case MessageError():
            return FailureKind.ENVIRONMENT, str(error)
        case InvariantBroken():
            return FailureKind.INVARIANT, str(error)
        case TimeoutError():
            return FailureKind.TIMEOUT, "the episode took longer than its time"
        case _Stale():
            return FailureKind.STALE, str(error)
        case _Stopped():
            return FailureKind.CANCELLED, "stopped before the next turn"
        case _ if not isinstance(error, Exception):
            return FailureKind.CANCELLED, "cancelled"
        case _:
            return FailureKind.INTERNAL, f"{type_name(error)}: {error_text(error)}"

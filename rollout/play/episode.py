"""One environment, one trajectory, turn by turn, to a `StopReason` or a `Failure`: never an exception.

The environment says `reset`, the session has the model answer, the environment says `step`, until one of
them ends it. Whatever happens, `close` is called once, and what was sampled before is kept.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

import anyio

from rollout.chat.messages import Message, with_tool_names
from rollout.config import EngineConfig
from rollout.door import error_text
from rollout.env import Env
from rollout.errors import MessageError, PromptTooLong, TransportError
from rollout.log import get_logger
from rollout.play.answers import (
    Answer,
    method_of,
    own_method,
    read_blocks,
    read_max_tokens,
    read_messages,
    read_score,
    read_step,
    read_tools,
    tell_finish_reason,
)
from rollout.play.faults import EnvironmentFault
from rollout.play.host import Host, Hosts
from rollout.play.route import FallbackRefused
from rollout.play.served import ContextFull
from rollout.play.session import Session
from rollout.play.setups import Setups
from rollout.process.threads import contained
from rollout.records import Failure, FailureKind, Job, Rollout, StopReason, Timing, Turn, settle_reward
from rollout.tokens.verify import InvariantBroken, check_trajectory

_log = get_logger(__name__)

#: How long `close` may take when an episode is cancelled.
CLOSE_GRACE_S = 5.0


class Episode:
    """Plays one job. `stopping` asks it to end after its current turn."""

    def __init__(
        self,
        job: Job,
        make_env: Callable[[], Env],
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
    ) -> None:
        """`staleness` counts the weight updates since the job was submitted.

        `setups` are what environments share; without them none is set up. An `asynchronous` environment is made in the
        task that it then lives in, too.
        """
        self._make_env = make_env
        self._session = session
        self._config = config
        self._setups = setups
        self._asynchronous = asynchronous
        self._stopping = stopping
        self._staleness = staleness
        self._max_staleness = max_staleness
        self._on_turn = on_turn
        self.rollout = job.rollout()
        self._messages: list[Message] = []
        self._tools: list[Any] = []
        self._env: Env | None = None
        self._while_whole = anyio.CancelScope()
        """Cancelled where the environment breaks between two calls."""
        self._host = Host(hosts, job.id, self._while_whole.cancel)
        self._deadline = session.clock.fail_after(config.episode_timeout_s)

    def __repr__(self) -> str:
        return f"<Episode {self.rollout.id} {len(self._session.turns)} turns>"

    async def play(self) -> Rollout:
        """Plays to the end. Raises only when it is cancelled from outside; `rollout` then holds what was played."""
        rollout, started = self.rollout, time.perf_counter()
        rollout.timing = Timing(started_at=time.time())
        failed: BaseException | None = None
        try:
            with self._deadline:
                with self._while_whole:
                    stop = await self._play()
                    self._refuse_stale()
                    rollout.stop = stop
                if self._host.broken is not None:
                    raise EnvironmentFault(_BROKEN, call="between calls") from contained(self._host.broken)
        except BaseException as error:
            failed = error
            if not isinstance(error, Exception):
                raise
        finally:
            self._session.close()
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
        env = self._env = await self._made()
        self._host.blocks = read_blocks(env)
        self._append(read_messages(await self._call("reset", method_of(env, "reset"), self.rollout.task), "reset"))
        if not self._messages:
            raise EnvironmentFault("reset gave no message")
        stop = await self._turns(env)
        if (score := own_method(env, "score")) is not None:
            limit_s = self._config.score_timeout_s or self._config.step_timeout_s
            reward = read_score(await self._call("score", score, list(self._messages), limit_s=limit_s))
            if reward is not None:
                self.rollout.score = reward
                settle_reward(self.rollout)
        return stop

    async def _made(self) -> Env:
        """The environment, with what it shares: before it is made where its class is known by then, else once it is."""
        setups, make_env = self._setups, self._make_env
        setup = setups.before(make_env) if setups is not None else None
        if setup is not None:
            with self._deadline.held():  # a pool of sandboxes may take minutes
                await setup.entered()
            make_env = setup.making(make_env)
        env: Env = await self._call("__init__", make_env, in_task=self._asynchronous)
        self._env = env  # whatever becomes of it, it is closed
        if setup is None and setups is not None:
            setup = setups.of(env)
        if setup is not None:
            with self._deadline.held():
                await setup.share(env)
        return env

    async def _turns(self, env: Env) -> StopReason:
        limit = self._config.max_turns
        while True:
            if limit is not None and len(self._session.turns) >= limit:
                return StopReason.MAX_TURNS
            if self._stopping():
                raise _Stopped
            self._refuse_stale()
            self._tools = read_tools(env, self._tools)
            try:
                answer = await self._session.turn(self._messages, tools=self._tools, max_tokens=read_max_tokens(env))
            except (ContextFull, PromptTooLong):
                return StopReason.CONTEXT_LENGTH
            self._on_turn(self._session.turns[-1])
            self._messages.append(answer)
            tell_finish_reason(env, self._session.turns[-1].finish_reason)
            if self._take(read_step(await self._call("step", method_of(env, "step"), answer))):
                return StopReason.DONE

    def _refuse_stale(self) -> None:
        """Raises _Stale for a rollout that lived through more weight updates than it may."""
        if self._max_staleness is not None and self._staleness() > self._max_staleness:
            raise _Stale(f"{self._staleness()} weight updates since it was submitted, {self._max_staleness} allowed")

    def _take(self, step: Answer) -> bool:
        """Takes over what the environment answered; returns whether it is done."""
        turn, rollout = self._session.turns[-1], self.rollout
        turn.reward, turn.metrics = step.reward, step.metrics
        total = (rollout.step_reward or 0.0) + step.reward
        if not math.isfinite(total):
            raise EnvironmentFault(f"the rewards of its steps add up to {total}, which is no finite number")
        rollout.step_reward = total
        rollout.metrics.update(step.metrics)
        settle_reward(rollout)
        if step.conversation is not None:
            self._messages = []
            self._append(step.conversation)
        self._append(step.messages)
        if not step.done and not (self._messages and self._messages[-1].role != "assistant"):
            raise EnvironmentFault("step is not done but gives the model nothing to answer")
        return step.done

    def _append(self, new: list[Message]) -> None:
        # Names for tool messages come from the calls, which may lie one turn back.
        last = self._messages[-1:]
        self._messages.extend(with_tool_names([*last, *new])[len(last) :])

    async def _call(
        self, name: str, function: Callable[..., Any], *args: Any, limit_s: float | None = None, in_task: bool = False
    ) -> Any:
        started = time.perf_counter()
        try:
            limit_s = limit_s or self._config.step_timeout_s
            return await self._host.call(name, function, *args, limit_s=limit_s, in_task=in_task)
        finally:
            self.rollout.timing.env_s += time.perf_counter() - started

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
            return Failure(kind=kind, message=message, error=type(error).__name__, turn=turn)
        raised = error.raised
        if isinstance(raised, asyncio.CancelledError) and close_fault is not None and close_fault.raised is not None:
            # A context that it holds cancelled it, and said why when it was left.
            raised = close_fault.raised
            message = f"{message}; {close_fault}"
        if raised is not None:
            text = f"{type(raised).__name__}: {error_text(raised)}"
            _log.warning("environment_raised", rollout=self.rollout.id, call=error.call, error=text, exc_info=raised)
            return Failure(kind=kind, message=message, error=type(raised).__name__, turn=turn)
        name = "TimeoutError" if kind is FailureKind.TIMEOUT else type(error).__name__
        return Failure(kind=kind, message=message, error=name, turn=turn)

    def _finish(self, wall_s: float) -> None:
        rollout, tree = self.rollout, self._session.trajectory
        rollout.turns = self._session.turns
        rollout.messages = self._messages
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


class _Stopped(Exception):
    """The run is stopping: no further turn."""


class _Stale(Exception):
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
            return FailureKind.INTERNAL, f"{type(error).__name__}: {error_text(error)}"

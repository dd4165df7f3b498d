"""One environment, one trajectory, turn by turn, to a `StopReason` or a `Failure`: never an exception.

The environment says `reset`, the session has the model answer, the environment says `step`, until one of
them ends it. Whatever happens, `close` is called once, and what was sampled before is kept.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import structlog

from rollout.config import EngineConfig
from rollout.env import Env, Step
from rollout.errors import MessageError, PromptTooLong, TransportError
from rollout.messages import Message, with_tool_names
from rollout.records import Failure, FailureKind, Rollout, StopReason, Timing, Turn
from rollout.session import ContextFull, FallbackRefused, Session
from rollout.verify import InvariantBroken, check_trajectory

_log = structlog.get_logger(__name__)

#: How long `close` may take when an episode is cancelled.
CLOSE_GRACE_S = 5.0


class EnvironmentFault(Exception):
    """The environment raised, took too long, or answered something that is not a step."""

    def __init__(self, message: str, *, kind: FailureKind = FailureKind.ENVIRONMENT) -> None:
        super().__init__(message)
        self.kind = kind


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout to play."""

    task_index: int
    task_id: str
    task: Mapping[str, Any]
    member: int
    group_size: int = 1
    """Members that are to be played."""
    submitted_at: int = 0
    """How often the weights had been updated when it was submitted."""

    @property
    def id(self) -> str:
        return f"{self.task_id}-{self.member}"

    def rollout(self) -> Rollout:
        """The rollout that it becomes, before anything is played."""
        return Rollout(
            id=self.id,
            task_id=self.task_id,
            task_index=self.task_index,
            member=self.member,
            task=self.task,
            submitted_at=self.submitted_at,
        )


class Episode:
    """Plays one job. `stopping` asks it to end after its current turn."""

    def __init__(
        self,
        job: Job,
        make_env: Callable[[], Env],
        session: Session,
        config: EngineConfig,
        *,
        threads: anyio.CapacityLimiter,
        stopping: Callable[[], bool] = lambda: False,
        staleness: Callable[[], int] = lambda: 0,
        max_staleness: int | None = None,
        on_turn: Callable[[Turn], None] = lambda turn: None,
    ) -> None:
        """`staleness` counts the weight updates since the job was submitted."""
        self._make_env = make_env
        self._session = session
        self._config = config
        self._threads = threads
        self._stopping = stopping
        self._staleness = staleness
        self._max_staleness = max_staleness
        self._on_turn = on_turn
        self.rollout = job.rollout()
        self._messages: list[Message] = []
        self._blocks = True

    def __repr__(self) -> str:
        return f"<Episode {self.rollout.id} {len(self._session.turns)} turns>"

    async def play(self) -> Rollout:
        """Plays to the end. Raises only when it is cancelled from outside; `rollout` then holds what was played."""
        rollout, started = self.rollout, time.perf_counter()
        rollout.timing = Timing(started_at=time.time())
        try:
            with anyio.fail_after(self._config.episode_timeout_s):
                stop = await self._play()
                self._refuse_stale()
                rollout.stop = stop
        except BaseException as error:
            rollout.failure = self._failure(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._session.close()
            self._finish(time.perf_counter() - started)
        return rollout

    async def _play(self) -> StopReason:
        await self._session.turnstile.enter()  # thousands that start at once would each start a thread
        env = await self._call("__init__", self._make_env)
        self._blocks = env.blocks
        try:
            opening = await self._call("reset", env.reset, self.rollout.task)
            self._append(opening, "reset")
            stop = await self._turns(env)
            limit = self._config.score_timeout_s or self._config.step_timeout_s
            if _own(env.score, Env.score):
                score = await self._call("score", env.score, list(self._messages), limit_s=limit)
                if score is not None:
                    self.rollout.reward = _number(score, "score")
            return stop
        finally:
            if _own(env.close, Env.close):
                # Shielded: a cancelled episode must still give back what its environment took.
                with anyio.move_on_after(CLOSE_GRACE_S, shield=True):
                    await self._close(env)

    async def _turns(self, env: Env) -> StopReason:
        limit = self._config.max_turns
        while True:
            if limit is not None and len(self._session.turns) >= limit:
                return StopReason.MAX_TURNS
            if self._stopping():
                raise _Stopped
            self._refuse_stale()
            try:
                answer = await self._session.turn(self._messages, tools=list(env.tools), max_tokens=env.max_tokens)
            except (ContextFull, PromptTooLong):
                return StopReason.CONTEXT_LENGTH
            self._on_turn(self._session.turns[-1])
            self._messages.append(answer)
            step = await self._call("step", env.step, answer)
            if self._take(step):
                return StopReason.DONE

    def _refuse_stale(self) -> None:
        """Raises _Stale for a rollout that lived through more weight updates than it may."""
        if self._max_staleness is not None and self._staleness() > self._max_staleness:
            raise _Stale(f"{self._staleness()} weight updates since it was submitted, {self._max_staleness} allowed")

    def _take(self, step: Step) -> bool:
        """Takes over what the environment answered; returns whether it is done."""
        if not isinstance(step, Step):
            raise EnvironmentFault(f"step must return a Step, not {type(step).__name__}")
        self.rollout.reward += _number(step.reward, "step")
        self.rollout.metrics.update({name: _number(value, f"metric {name!r}") for name, value in step.metrics.items()})
        if step.conversation is not None:
            self._messages = []
            self._append(step.conversation, "step")
        self._append(step.messages, "step")
        if not step.done and not (self._messages and self._messages[-1].role != "assistant"):
            raise EnvironmentFault("step is not done but gives the model nothing to answer")
        return step.done

    def _append(self, messages: Sequence[object], source: str) -> None:
        if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
            raise EnvironmentFault(f"{source} must give a list of messages, not {type(messages).__name__}")
        try:
            new = [Message.of(message) for message in messages]
        except MessageError as error:
            raise EnvironmentFault(f"{source} gave a message that cannot be read: {error}") from error
        if source == "reset" and not new:
            raise EnvironmentFault("reset gave no message")
        # Names for tool messages come from the calls, which may lie one turn back.
        last = self._messages[-1:]
        self._messages.extend(with_tool_names([*last, *new])[len(last) :])

    async def _call(self, name: str, function: Callable[..., Any], *args: Any, limit_s: float | None = None) -> Any:
        """Calls the environment: async functions here, others in a thread where they may block."""
        started = time.perf_counter()
        limit_s = limit_s or self._config.step_timeout_s
        try:
            with anyio.fail_after(limit_s) if limit_s else contextlib.nullcontext():
                if inspect.iscoroutinefunction(function):
                    return await function(*args)
                if self._blocks:
                    result = await anyio.to_thread.run_sync(
                        lambda: function(*args), limiter=self._threads, abandon_on_cancel=True
                    )
                else:
                    result = function(*args)
                return await result if inspect.isawaitable(result) else result
        except TimeoutError as error:
            message = f"{name} took longer than {limit_s:g} s" if limit_s else str(error)
            raise EnvironmentFault(message, kind=FailureKind.TIMEOUT) from error
        except Exception as error:
            raise EnvironmentFault(f"{name} raised {type(error).__name__}: {error}") from error
        finally:
            self.rollout.timing.env_s += time.perf_counter() - started

    async def _close(self, env: Env) -> None:
        try:
            await self._call("close", env.close)
        except EnvironmentFault as error:
            # The rollout's outcome stands: what was played does not get worse by a failed clean-up.
            _log.warning("env_close_failed", rollout=self.rollout.id, error=str(error))

    def _failure(self, error: BaseException) -> Failure:
        turn = len(self._session.turns) + 1
        kind, message = _classify(error)
        if kind is FailureKind.INTERNAL:
            _log.error("internal_error", rollout=self.rollout.id, exc_info=error)
        cause = error.__cause__ if isinstance(error, EnvironmentFault) and error.__cause__ else error
        return Failure(kind=kind, message=message, error=type(cause).__name__, turn=turn)

    def _finish(self, wall_s: float) -> None:
        rollout, tree = self.rollout, self._session.trajectory
        rollout.turns = self._session.turns
        rollout.messages = self._messages
        rollout.roots, rollout.nodes, rollout.leaves = tree.roots, tree.nodes, tree.leaves
        rollout.staleness = self._staleness()
        rollout.timing.wall_s = wall_s
        rollout.timing.request_s = sum(turn.request_s for turn in rollout.turns)
        if self._config.verify and rollout.failure is None:
            try:
                check_trajectory(tree, sum(turn.completion_tokens for turn in rollout.turns))
            except InvariantBroken as error:
                rollout.stop = None
                rollout.failure = Failure(kind=FailureKind.INVARIANT, message=str(error), error="InvariantBroken")


def _own(method: Any, default: Any) -> bool:
    """Whether an environment has this method of its own: the default does nothing, and a thread for it takes 0.1 ms."""
    return getattr(method, "__func__", method) is not default


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
            return FailureKind.INTERNAL, f"{type(error).__name__}: {error}"


def _number(value: object, source: str) -> float:
    if isinstance(value, bool | int | float):
        return float(value)
    raise EnvironmentFault(f"{source} gave {type(value).__name__} where a number belongs")

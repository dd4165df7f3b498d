"""A stream's own rewards for whole groups: the trainer's function, called as each group is complete.

    async def judged(group): return await judge.rank([rollout.messages for rollout in group.finished])

It may be an async function, an object that is called like one, a plain function (which runs in a thread), or anything
that returns an awaitable. It gives one number for each finished member, in their order, within `score_timeout_s`. If it
raises, takes too long, or gives anything else, that costs its group and no other: the group is delivered, and its
finished members are failures that say why. Nobody trains on a reward that nobody gave.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import anyio
import structlog

from rollout import door
from rollout.records import Failure, FailureKind, Group
from rollout.threads import ContainedError, Threads

#: A whole group's rewards, one for each finished member in their order; a plain function runs in a thread.
GroupReward = Callable[[Group], Sequence[float] | Awaitable[Sequence[float]]]

#: Groups that are scored at once, in one engine.
SCORED_AT_ONCE = 64

_NAME = "group_reward"

_log = structlog.get_logger(__name__)


class GroupScorer:
    """Sets groups' rewards by one function."""

    def __init__(
        self, reward: GroupReward, *, limit_s: float | None, threads: Threads, at_once: anyio.CapacityLimiter
    ) -> None:
        """`at_once` limits how many groups are scored at the same time, and is shared by the engine's streams."""
        self._reward = reward
        self._limit_s = limit_s
        self._threads = threads
        self._at_once = at_once

    async def score(self, group: Group) -> Failure | None:
        """Sets the finished members' rewards, or makes them failures; returns the failure."""
        async with self._at_once:
            failure = await self._failure(group)
        group.rewarded = failure is None
        if failure is not None:
            for rollout in group.finished:
                rollout.stop, rollout.failure = None, failure
        return failure

    async def _failure(self, group: Group) -> Failure | None:
        cause: BaseException
        with anyio.CancelScope() as timer:
            if self._limit_s is not None:
                timer.deadline = anyio.current_time() + self._limit_s
            try:
                members = group.finished
                found = await self._call(group)
                if len(found) != len(members):
                    raise door.Refused(f"gave {len(found)} rewards for {len(members)} finished rollouts", _NAME)
                for rollout, value in zip(members, found, strict=True):
                    rollout.reward = value
                return None
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) and anyio.current_effective_deadline() < 0:
                    raise  # its time is up, or the stream has ended
                cause = error.error if isinstance(error, ContainedError) else error
        if timer.cancelled_caught:
            message = f"group_reward took longer than {self._limit_s:g} s"
            return self._failed(group, FailureKind.TIMEOUT, message, TimeoutError(message))
        message = door.error_text(cause)
        if not isinstance(cause, door.Refused):
            message = f"group_reward raised {type(cause).__name__}: {message}"
        return self._failed(group, FailureKind.ENVIRONMENT, message, cause)

    def _failed(self, group: Group, kind: FailureKind, message: str, cause: BaseException) -> Failure:
        _log.warning("environment_raised", group=group.task_id, call="group_reward", error=message, exc_info=cause)
        return Failure(kind=kind, message=message, error=type(cause).__name__)

    async def _call(self, group: Group) -> list[float]:
        if _is_async(self._reward):
            found = self._reward(group)
        else:
            found = await self._threads.run(self._in_thread, group)
        return _numbers(await found) if inspect.isawaitable(found) else _numbers(found)

    def _in_thread(self, group: Group) -> Any:
        """What a plain function gives: read here, too, since it may be a generator, or lie on a GPU."""
        found = self._reward(group)
        return found if inspect.isawaitable(found) else _numbers(found)


def _is_async(function: Callable[..., object]) -> bool:
    """Whether calling it does nothing yet but make a coroutine. Sees through functools.partial."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _numbers(found: object) -> list[float]:
    if not isinstance(found, Iterable) or isinstance(found, str | bytes | Mapping):
        raise door.Refused(f"gave {type(found).__name__}, not a list of numbers", _NAME)
    return [door.number(value, _NAME) for value in found]

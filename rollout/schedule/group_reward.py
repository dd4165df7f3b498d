"""A stream's own rewards for whole groups: the trainer's function, called as each group is complete.

    async def judged(group): return await judge.rank([rollout.messages for rollout in group.finished])

It may be an async function, an object that is called like one, a plain function (which runs in a thread), or anything
that returns an awaitable. It gives one number for each finished member, in their order, within `score_timeout_s`. If it
raises, takes too long, or gives anything else, that costs its group and no other: the group is delivered, and its
finished members are failures that say why. Nobody trains on a reward that nobody gave.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import anyio

from rollout import door
from rollout.log import get_logger
from rollout.play.faults import EnvironmentFault
from rollout.play.host import Host, Hosts
from rollout.records import Failure, FailureKind, Group, settle_reward

#: A whole group's rewards, one for each finished member in their order; a plain function runs in a thread.
GroupReward = Callable[[Group], Sequence[float] | Awaitable[Sequence[float]]]

#: Groups that are scored at once, in one engine.
SCORED_AT_ONCE = 64

_NAME = "group_reward"

_log = get_logger(__name__)


class GroupScorer:
    """Sets groups' rewards by one function."""

    def __init__(
        self, reward: GroupReward, *, limit_s: float | None, hosts: Hosts, at_once: anyio.CapacityLimiter
    ) -> None:
        """`at_once` limits how many groups are scored at the same time, and is shared by the engine's streams."""
        self._reward = reward
        self._limit_s = limit_s
        self._hosts = hosts
        self._at_once = at_once
        self._in_loop = _is_async(reward)

    def __repr__(self) -> str:
        return f"<GroupScorer {self._reward!r}>"

    async def score(self, group: Group) -> Failure | None:
        """Sets the finished members' rewards, or makes them failures; returns the failure."""
        members = group.finished
        try:
            async with self._at_once:
                rewards = _numbers(await self._call(group))
            if len(rewards) != len(members):
                raise door.Refused(f"gave {len(rewards)} rewards for {len(members)} finished rollouts", _NAME)
        except (EnvironmentFault, door.Refused) as error:
            failure = _failure(group, error)
            for rollout in members:
                rollout.stop, rollout.failure = None, failure
            return failure
        for rollout, reward in zip(members, rewards, strict=True):
            rollout.group_reward = reward
            settle_reward(rollout)
        group.rewarded = True
        return None

    async def _call(self, group: Group) -> Any:
        """What the function gives; numbers, where it gives them in its thread."""
        host = Host(self._hosts, group.task_id)
        try:
            if not self._in_loop:
                try:
                    return await host.call(_NAME, self._read, group, limit_s=self._limit_s)
                except EnvironmentFault as fault:
                    if not _needs_loop(fault.raised):
                        raise
                    self._in_loop = True  # it makes a task or a future of its own, and does not block
            return await host.call(_NAME, self._read, group, limit_s=self._limit_s, in_task=True)
        finally:
            host.end()

    def _read(self, group: Group) -> Any:
        """What it gives is read where it is called: it may be a generator, or lie on a GPU."""
        found = self._reward(group)
        return found if inspect.isawaitable(found) else _numbers(found)


def _failure(group: Group, error: EnvironmentFault | door.Refused) -> Failure:
    kind, message = FailureKind.ENVIRONMENT, str(error)
    cause: BaseException = error
    if isinstance(error, EnvironmentFault):
        kind = error.kind
        cause = error.raised or TimeoutError(message)
        message = str(cause) if isinstance(cause, door.Refused) else message
    _log.warning("environment_raised", group=group.task_id, call=_NAME, error=message, exc_info=cause)
    return Failure(kind=kind, message=message, error=door.type_name(cause))


def _is_async(function: Callable[..., object]) -> bool:
    """Whether calling it does nothing yet but make a coroutine. Sees through functools.partial."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _needs_loop(error: BaseException | None) -> bool:
    """Whether a function makes a task or a future of its own, as `asyncio.gather` does, which no thread can."""
    return isinstance(error, RuntimeError) and "event loop" in str(error)


def _numbers(found: object) -> list[float]:
    if not isinstance(found, Iterable) or isinstance(found, str | bytes | Mapping):
        raise door.Refused(f"gave {door.type_name(found)}, not a list of numbers", _NAME)
    return [door.number(value, _NAME) for value in found]

"""Tasks that user code starts on our event loop: contained while they run, cancelled when their rollout ends.

asyncio lets SystemExit and KeyboardInterrupt out of any task through the whole event loop, which would end every other
rollout. What user code starts is therefore wrapped: a task factory looks whether it was started from within a rollout's
user code (a context variable says so, which tasks hand on to the tasks that they start) and contains what it raises.
What still runs when the rollout ends is the rollout's leak, is cancelled, and said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar, cast

from rollout.door import type_name
from rollout.log import get_logger
from rollout.process.threads import ContainedError

#: Tasks that swallowed their cancellation, held for good: were they thrown away, each would be told so by an exception
#: that it swallows, too, and spin for ever in whatever thread did that.
unending: list[object] = []

_log = get_logger(__name__)

#: Failed tasks whose exception nobody took, that one rollout keeps until its end; asyncio says the others itself.
_MOST_KEPT = 16

T = TypeVar("T")

Factory = Callable[..., asyncio.Task[Any]]


class UserTasks:
    """What the user code of one rollout has started."""

    def __init__(self) -> None:
        self.running: set[asyncio.Task[Any]] = set()
        self._failed: list[asyncio.Task[Any]] = []

    def __repr__(self) -> str:
        return f"<UserTasks {len(self.running)} running>"

    def adopt(self, task: asyncio.Task[Any], started: Coroutine[Any, Any, Any]) -> None:
        """Takes a task over that carries out `started`."""
        self.running.add(task)
        task.add_done_callback(partial(self._ended, started))

    def _ended(self, started: Coroutine[Any, Any, Any], task: asyncio.Task[Any]) -> None:
        self.running.discard(task)
        started.close()  # where it was cancelled before it began, Python would warn that it never did
        if getattr(task, "_log_traceback", False) and len(self._failed) < _MOST_KEPT:
            self._failed.append(task)

    def end(self, rollout_id: str) -> set[asyncio.Task[Any]]:
        """Cancels what still runs, and says it, and what failed unseen. Returns what was cancelled."""
        for task in self._failed:
            if getattr(task, "_log_traceback", False):  # nobody has taken it since
                error = task.exception()
                cause = error.error if isinstance(error, ContainedError) else error
                _log.warning(
                    "environment_task_raised", rollout=rollout_id, reason=type_name(cause), exc_info=cause or error
                )
        self._failed.clear()
        left = {task for task in self.running if not task.done()}
        for task in left:
            task.cancel()
        if left:
            names = sorted(task.get_name() for task in left)[:3]
            hint = "the environment started them, and its close did not end them: they are cancelled"
            _log.warning("environment_left_tasks", rollout=rollout_id, tasks=len(left), names=names, hint=hint)
        return left


#: Whose user code runs here; None in our own.
owner: ContextVar[UserTasks | None] = ContextVar("rollout_user_tasks", default=None)


class _TaskFactory:
    """Adopts tasks that user code starts; leaves others to the factory that was there before."""

    def __init__(self, before: Factory | None) -> None:
        self.before = before
        self.asked = 0
        """How many engines want it; it goes with the last."""

    def __call__(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        tasks = owner.get()
        if tasks is None:
            return self._made(loop, coro, options)
        task = self._made(loop, _contained(coro), options)
        tasks.adopt(task, coro)
        return task

    def _made(self, loop: asyncio.AbstractEventLoop, coro: Any, options: dict[str, Any]) -> asyncio.Task[Any]:
        if self.before is not None:
            return self.before(loop, coro, **options)
        return asyncio.Task(coro, loop=loop, **options)


async def _contained(started: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await started
    except (SystemExit, KeyboardInterrupt) as error:
        raise ContainedError(error) from error


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """As `asyncio.run`, for a process that is ours: SystemExit in a callback of user code does not end the loop."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        main = loop.create_task(work())
        while True:
            try:
                return loop.run_until_complete(main)
            except SystemExit as error:
                if main.done():
                    raise
                _log.warning("environment_raised_in_callback", reason="SystemExit", exc_info=error)


def watch(loop: asyncio.AbstractEventLoop) -> None:
    """Adopts what user code starts on this loop, until as many `unwatch`."""
    before = loop.get_task_factory()
    factory = before if isinstance(before, _TaskFactory) else _TaskFactory(cast(Factory | None, before))
    if factory is not before:
        loop.set_task_factory(factory)
    factory.asked += 1


def unwatch(loop: asyncio.AbstractEventLoop) -> None:
    """Undoes one `watch`."""
    factory = loop.get_task_factory()
    if isinstance(factory, _TaskFactory):  # else somebody has set another since
        factory.asked -= 1
        if not factory.asked:
            loop.set_task_factory(factory.before)

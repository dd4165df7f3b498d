"""What user code starts is contained while it runs, and ends with its rollout."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from rollout.process.threads import ContainedError
from rollout.process.user_tasks import UserTasks, owner, run, unwatch, watch
from tests.log_kit import capture_logs


@pytest.fixture
async def tasks() -> Any:
    """Tasks of a rollout whose user code is the test."""
    loop, tasks = asyncio.get_running_loop(), UserTasks()
    watch(loop)
    yield tasks
    unwatch(loop)
    assert loop.get_task_factory() is None


class As:
    """Runs as the user code of a rollout."""

    def __init__(self, tasks: UserTasks) -> None:
        self._tasks = tasks

    def __enter__(self) -> None:
        self._token = owner.set(self._tasks)

    def __exit__(self, *exc_info: object) -> None:
        owner.reset(self._token)


async def exits() -> None:
    sys.exit(3)


async def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("function", [exits, interrupted])
async def test_what_would_end_the_loop_is_contained(tasks: UserTasks, function: Any) -> None:
    """Whoever awaits the task gets it as an ordinary exception."""
    with As(tasks):
        task = asyncio.create_task(function())
    with pytest.raises(ContainedError) as raised:
        await task
    assert isinstance(raised.value.error, SystemExit | KeyboardInterrupt)


async def test_tasks_of_tasks_and_of_task_groups_are_adopted(tasks: UserTasks) -> None:
    """The mark is handed on, and anyio's groups work as ever, their cancellation included."""
    seen: list[int] = []

    async def inner() -> None:
        seen.append(len(tasks.running))
        await anyio.sleep_forever()

    async def outer() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(inner)
            while not seen:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()

    with As(tasks):
        await asyncio.create_task(outer())
    assert seen == [2]
    await anyio.lowlevel.checkpoint()
    assert not tasks.running


async def test_tasks_of_our_own_are_left_alone(tasks: UserTasks) -> None:
    """Only what user code starts is adopted."""
    await asyncio.create_task(asyncio.sleep(0))
    assert not tasks.running
    assert tasks.end("r") == set()


async def test_what_is_left_is_cancelled_and_said(tasks: UserTasks) -> None:
    """With its number and names."""
    with As(tasks):
        task = asyncio.create_task(asyncio.sleep(3600), name="poller")
    with capture_logs() as logs:
        assert tasks.end("r") == {task}
    await asyncio.wait([task])
    assert task.cancelled()
    assert (logs[0]["event"], logs[0]["tasks"], logs[0]["names"]) == ("environment_left_tasks", 1, ["poller"])


async def test_a_failure_that_nobody_took_is_said_with_its_traceback(tasks: UserTasks) -> None:
    """What was taken is not."""

    async def fails(text: str) -> None:
        raise ValueError(text)

    with As(tasks):
        seen, unseen = asyncio.create_task(fails("seen")), asyncio.create_task(fails("unseen"))
    with pytest.raises(ValueError, match="seen"):
        await seen
    await asyncio.wait([unseen])
    with capture_logs() as logs:
        tasks.end("r")
    assert [str(entry["exc_info"]) for entry in logs] == ["unseen"]


async def test_a_factory_that_was_there_before_is_used_and_put_back() -> None:
    """A library's loop may have one of its own; several engines share ours."""
    loop, made = asyncio.get_running_loop(), list[str]()

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        made.append("task")
        return asyncio.Task(coro, loop=loop, **options)

    loop.set_task_factory(factory)
    try:
        watch(loop)
        watch(loop)
        with As(UserTasks()):
            await asyncio.create_task(asyncio.sleep(0))
        unwatch(loop)
        assert loop.get_task_factory() is not factory
        unwatch(loop)
        assert loop.get_task_factory() is factory
        assert made == ["task"]
    finally:
        loop.set_task_factory(None)


def test_an_exit_in_a_callback_does_not_end_our_own_loop() -> None:
    """What runs goes on, and the exit is said."""

    async def work() -> int:
        with anyio.fail_after(60):
            asyncio.get_running_loop().call_soon(sys.exit, 5)
            assert await anyio.to_thread.run_sync(lambda: 3) == 3
        return 4

    with capture_logs() as logs:
        assert run(work) == 4
    assert [(entry["event"], entry["reason"]) for entry in logs] == [("environment_raised_in_callback", "SystemExit")]


def test_an_exit_of_our_own_ends_it() -> None:
    """It is no user code's."""
    with pytest.raises(SystemExit):
        run(exits)


@pytest.fixture(autouse=True)
def no_warning(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """A task that was cancelled before it began leaves no coroutine that "was never awaited"."""
    yield
    assert not recwarn.list

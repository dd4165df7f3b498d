"""Case engine/blocking_tasks: a slow iterator of tasks, a shard of a data set that is fetched, say."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import anyio

from tests.rollout.test_engine import engine


async def test_a_slow_iterator_of_tasks_leaves_the_loop_awake() -> None:
    """Each task is fetched only when the loop says so: which it can, since the iterator does not hold it."""
    fetched = threading.Semaphore(0)

    def tasks() -> Iterator[Any]:
        for n in range(5):
            assert fetched.acquire(timeout=30), "the loop stands still"
            yield {"n": n}

    running, _ = engine(concurrency=2)
    groups = []
    async with running, anyio.create_task_group() as beside:

        async def fetch() -> None:
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
                fetched.release()

        beside.start_soon(fetch)
        groups = [group async for group in running.stream(tasks())]
    assert [group.task["n"] for group in groups] == list(range(5))

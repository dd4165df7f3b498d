"""Case seams/e25: `submit` after `cancel`, and after a task that cannot be written."""

from __future__ import annotations

import anyio
import pytest

from rollout.errors import ConfigError
from tests.rollout.test_engine import engine
from transports.scripted import Stalled, reply


async def test_a_submission_after_a_cancel_is_played() -> None:
    """Nobody waits without end."""
    running, _ = engine(*[reply("x")] * 9, concurrency=2)
    async with running:
        with anyio.fail_after(20):
            assert len((await (await running.submit({"index": 1})).result()).finished) == 1
            running.cancel()
            await anyio.wait_all_tasks_blocked()
            assert len((await (await running.submit({"index": 2})).result()).finished) == 1


async def test_a_bad_submission_ends_no_other() -> None:
    """It is refused where it is submitted, and the others run on."""
    running, transport = engine(*[Stalled()] * 9, concurrency=4)
    async with running:
        with anyio.fail_after(20):
            good = await running.submit({"index": 1})
            with pytest.raises(ConfigError, match="image"):
                await running.submit({"image": object()})
            others = [await running.submit({"index": 3}), await running.submit({"index": 4})]
            await transport.wait_for(3)
            assert [each.done for each in (good, *others)] == [False] * 3
            running.cancel()
            assert [len((await each.result()).rollouts) for each in (good, *others)] == [1] * 3

"""The caller's `on_rollout`: what it raises ends the stream, and when nobody reads it its time is limited."""

from __future__ import annotations

import anyio
import pytest

from rollout.errors import RolloutError
from rollout.records import Job, Rollout
from rollout.schedule.hand_over import HandOver, OnRollout
from tests.log_kit import capture_logs

ROLLOUT = Job(task_index=0, task_id="0-a", task={}, member=0).rollout()


def handing(on_rollout: OnRollout, limit_s: float = 60.0) -> tuple[HandOver, list[BaseException]]:
    ended: list[BaseException] = []
    return HandOver(on_rollout, ended.append, limit_s), ended


async def test_each_rollout_is_handed_over() -> None:
    """And nothing is left of the call."""
    got: list[Rollout] = []

    async def keep(rollout: Rollout) -> None:
        got.append(rollout)

    hand_over, ended = handing(keep)
    await hand_over.call(ROLLOUT)
    assert (got, ended, hand_over.under_way) == ([ROLLOUT], [], set())


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), SystemExit(3)])
async def test_what_it_raises_ends_the_stream(error: BaseException) -> None:
    """As it is; what would end more than the stream is said by name."""

    async def fail(rollout: Rollout) -> None:
        raise error

    hand_over, ended = handing(fail)
    await hand_over.call(ROLLOUT)
    (found,) = ended
    assert found is error or (isinstance(found, RolloutError) and found.__cause__ is error)


@pytest.mark.parametrize("before", [True, False])
async def test_a_stream_that_nobody_reads_waits_so_long_and_no_longer(before: bool) -> None:
    """For a call that was under way, and for one that comes later; then that is the stream's error, and logged."""
    begun = anyio.Event()

    async def hang(rollout: Rollout) -> None:
        begun.set()
        await anyio.sleep_forever()

    hand_over, ended = handing(hang, limit_s=0.01)
    with capture_logs() as logs:
        async with anyio.create_task_group() as group:
            if before:
                hand_over.limit()
            group.start_soon(hand_over.call, ROLLOUT)
            await begun.wait()
            hand_over.limit()
    assert "on_rollout took longer than 0.01 s" in str(ended[0])
    assert [line["event"] for line in logs] == ["on_rollout_hangs"]
    assert hand_over.under_way == set()

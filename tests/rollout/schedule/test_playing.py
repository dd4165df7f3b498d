"""What a rollout's end from outside is called."""

from __future__ import annotations

import anyio
import pytest

from rollout.records import Failure, FailureKind, Job, Rollout, StopReason
from rollout.schedule.playing import Playing, ended_by
from tests.log_kit import capture_logs

JOB = Job(task_index=0, task_id="0-a", task={}, member=0)
STALE = Failure(kind=FailureKind.STALE, message="old")


def ended(error: BaseException, why: Failure | None = None, stop: StopReason | None = None) -> Rollout:
    rollout = JOB.rollout()
    rollout.stop = stop
    ended_by(rollout, why, error)
    return rollout


class Cancelled(BaseException):
    """Stands for a cancellation."""


@pytest.mark.parametrize(
    ("why", "stop", "kind"),
    [
        (None, None, FailureKind.CANCELLED),
        (STALE, None, FailureKind.STALE),
        (STALE, StopReason.DONE, FailureKind.STALE),
        (None, StopReason.DONE, None),
    ],
)
def test_a_cancellation_is_why_it_was_cancelled(
    why: Failure | None, stop: StopReason | None, kind: FailureKind | None
) -> None:
    """A rollout that had ended well before it came stays as it is, unless it was ended for a reason."""
    rollout = ended(Cancelled(), why, stop)
    assert (rollout.failure.kind if rollout.failure else None) == kind
    assert (rollout.stop is None) == (kind is not None)


def test_a_fault_of_ours_is_internal_and_logged() -> None:
    """With its traceback."""
    with capture_logs() as logs:
        rollout = ended(ValueError("ours"), STALE)
    assert rollout.failure == Failure(kind=FailureKind.INTERNAL, message="ours", error="ValueError")
    assert [type(line["exc_info"]).__name__ for line in logs] == ["ValueError"]


async def test_it_is_ended_by_its_scope() -> None:
    """And says why."""
    playing = Playing(JOB, anyio.CancelScope())
    with playing.scope:
        playing.end(STALE)
        await anyio.sleep_forever()
    assert playing.scope.cancelled_caught
    assert playing.why is STALE

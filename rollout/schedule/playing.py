"""A rollout under way, as a stream sees it: what plays it, and what ended it."""

from __future__ import annotations

from typing import Protocol

import anyio
import msgspec

from rollout import door
from rollout.log import get_logger
from rollout.records import Failure, FailureKind, Job, Rollout

_log = get_logger(__name__)


class Playable(Protocol):
    """A rollout that is ready to be played: an `Episode`, here or in another process."""

    rollout: Rollout

    async def play(self) -> Rollout:
        """Plays to the end. Raises only when it is cancelled from outside; `rollout` then holds what was played."""
        ...


class Plays(Protocol):
    """What plays the rollouts of one environment: in this process, or in others."""

    def episode(self, job: Job, *, evaluation: bool) -> Playable:
        """One rollout, ready to be played."""
        ...


class Playing(msgspec.Struct):
    """A rollout under way."""

    job: Job
    scope: anyio.CancelScope
    why: Failure | None = None
    """Why it was ended from here, where it was."""

    def end(self, why: Failure | None) -> None:
        self.why = why
        self.scope.cancel()


def ended_by(rollout: Rollout, why: Failure | None, error: BaseException) -> None:
    """Says what ended a rollout from outside: a cancellation, or a fault of ours."""
    if isinstance(error, Exception):
        _log.error("internal_error", rollout=rollout.id, exc_info=error)
        message = door.error_text(error)
        why = Failure(kind=FailureKind.INTERNAL, message=message, error=door.type_name(error))
    elif why is None and rollout.stop is None and rollout.failure is None:
        why = Failure(kind=FailureKind.CANCELLED, message="cancelled")
    if why is not None:
        rollout.stop, rollout.failure = None, why

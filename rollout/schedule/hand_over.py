"""A stream's `on_rollout`: the caller's own function, awaited for each rollout as it ends.

It may be what keeps the rollouts, so that what it raises ends the stream. As long as the stream is read it may take its
time; once nobody reads it any more, each call has so long to end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from rollout.errors import RolloutError
from rollout.log import get_logger
from rollout.records import Rollout
from rollout.schedule.task_source import as_error

#: Seconds that `on_rollout` may still take once its stream was given up or its engine closed.
HAND_OVER_S = 60.0

OnRollout = Callable[[Rollout], Awaitable[None]]

_log = get_logger(__name__)


class HandOver:
    """The calls of one stream."""

    def __init__(self, on_rollout: OnRollout, fail: Callable[[BaseException], None], limit_s: float) -> None:
        """`fail` is told what ends the stream."""
        self._on_rollout = on_rollout
        self._fail = fail
        self._limit_s = limit_s
        self._over = False
        self.under_way: set[anyio.CancelScope] = set()

    def __repr__(self) -> str:
        return f"<HandOver {len(self.under_way)} under way>"

    def limit(self) -> None:
        """Nobody reads the stream any more."""
        self._over = True
        for scope in self.under_way:
            scope.deadline = anyio.current_time() + self._limit_s

    async def call(self, rollout: Rollout) -> None:
        """Hands a rollout over."""
        with anyio.CancelScope() as limit:
            if self._over:
                limit.deadline = anyio.current_time() + self._limit_s
            self.under_way.add(limit)
            try:
                await self._on_rollout(rollout)
            except KeyboardInterrupt as error:
                self._fail(error)
            except BaseException as error:
                if limit.cancel_called:
                    raise
                self._fail(as_error(error, "on_rollout"))
            finally:
                self.under_way.discard(limit)
        if limit.cancelled_caught:
            _log.error("on_rollout_hangs", rollout=rollout.id, limit_s=self._limit_s)
            self._fail(RolloutError(f"on_rollout took longer than {self._limit_s:g} s when the stream was over"))

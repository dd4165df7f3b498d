"""`--fail-fast` and `--max-failures`: when a run that only fails is ended. Pure.

A number ends it with that many failures; a rate once 20 rollouts have ended, so that one early failure is no rate.
Rollouts that were cancelled have not failed.
"""

from __future__ import annotations

import math

from rollout.errors import ConfigError
from rollout.records import FailureKind, Rollout

#: Rollouts that must have ended before a rate counts.
RATE_FROM = 20


class FailureLimit:
    """Counts what ends, and says when it is enough."""

    def __init__(self, limit: int | float | None) -> None:
        """An int is a number of failures, a float a rate. Raises ConfigError."""
        wrong = limit is not None and (
            isinstance(limit, bool)
            or (isinstance(limit, float) and not (math.isfinite(limit) and 0 < limit <= 1))
            or limit < (1 if isinstance(limit, int) else 0)
        )
        if wrong:
            raise ConfigError(f"max_failures is a number from 1, or a rate above 0 and up to 1.0, not {limit!r}")
        self._limit = limit
        self.ended = 0
        self.failed = 0

    def __repr__(self) -> str:
        return f"<FailureLimit {self._limit}: {self.failed} of {self.ended} failed>"

    def add(self, rollout: Rollout) -> str | None:
        """Counts a rollout; says why the run is ended, where it is."""
        failure = rollout.failure
        if failure is not None and failure.kind is FailureKind.CANCELLED:
            return None
        self.ended += 1
        self.failed += failure is not None
        if self._limit is None or failure is None or not self._reached(self._limit):
            return None
        allowed = f"{self._limit:.0%}" if isinstance(self._limit, float) else str(self._limit)
        return f"{self.failed} of {self.ended} rollouts failed (--max-failures {allowed}), the last: {failure.message}"

    def _reached(self, limit: int | float) -> bool:
        if isinstance(limit, int):
            return self.failed >= limit
        return self.ended >= RATE_FROM and self.failed >= limit * self.ended


def failure_limit_of(text: str | None, *, fail_fast: bool = False) -> int | float | None:
    """What the command line says: 10, 0.5 or 50%. Raises ConfigError."""
    if fail_fast:
        if text is not None:
            raise ConfigError("--fail-fast is --max-failures 1: give one of them")
        return 1
    if text is None:
        return None
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise ConfigError(f"--max-failures takes a number, or a rate such as 0.5 or 50%, not {text!r}") from None

"""When a run that only fails is ended."""

from __future__ import annotations

from typing import Any

import pytest

from rollout.cli.failure_limit import RATE_FROM, FailureLimit, failure_limit_of
from rollout.errors import ConfigError
from rollout.records import Failure, FailureKind, Rollout, StopReason


def ended(kind: FailureKind | None = None) -> Rollout:
    failure = Failure(kind=kind, message="boom") if kind else None
    stop = None if kind else StopReason.DONE
    return Rollout(id="a-0", task_id="a", task_index=0, member=0, failure=failure, stop=stop)


def test_a_number_of_failures_ends_the_run() -> None:
    """The second of two, and the reason names the last failure."""
    limit = FailureLimit(2)
    assert limit.add(ended(FailureKind.ENVIRONMENT)) is None
    assert limit.add(ended()) is None
    said = limit.add(ended(FailureKind.TRANSPORT))
    assert said == "2 of 3 rollouts failed (--max-failures 2), the last: boom"


def test_a_rate_counts_once_enough_have_ended() -> None:
    """One early failure is no rate."""
    limit = FailureLimit(0.5)
    said = [limit.add(ended(FailureKind.ENVIRONMENT if number % 2 else None)) for number in range(RATE_FROM)]
    assert said[:-1] == [None] * (RATE_FROM - 1)
    assert "50%" in (said[-1] or "")


def test_cancelled_rollouts_have_not_failed() -> None:
    """However many a stop cancels."""
    limit = FailureLimit(1)
    assert [limit.add(ended(FailureKind.CANCELLED)) for _ in range(50)] == [None] * 50
    assert FailureLimit(None).add(ended(FailureKind.INTERNAL)) is None


@pytest.mark.parametrize(("text", "limit"), [("10", 10), ("0.5", 0.5), ("50%", 0.5), ("100%", 1.0), (None, None)])
def test_the_command_line_takes_a_number_or_a_rate(text: str | None, limit: Any) -> None:
    """An integer is a number, and the rest a rate."""
    found = failure_limit_of(text)
    assert (found, type(found)) == (limit, type(limit))
    FailureLimit(found)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "0.0", "nan", "150%", "inf"])
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    """It names what a limit can be."""
    with pytest.raises(ConfigError, match="a number from 1, or a rate"):
        FailureLimit(failure_limit_of(text))


def test_words_are_refused() -> None:
    """So is a limit given twice."""
    with pytest.raises(ConfigError, match="such as 0"):
        failure_limit_of("many")
    with pytest.raises(ConfigError, match="one of them"):
        failure_limit_of("3", fail_fast=True)

"""What went wrong, as the error that a client is told."""

from __future__ import annotations

import pytest

from rollout.errors import AuthenticationFailed, ConnectionFailed, MessageError, ModelNotFound, PromptTooLong
from rollout.errors import LimitReached as Limit
from rollout.play.model import RolloutEnded
from rollout.play.session import SessionClosed
from rollout.proxy.faults import RETRYABLE, ClientGone, refusal_of, unknown_key
from rollout.tokens.verify import InvariantBroken
from tests.log_kit import capture_logs


def full() -> Limit:
    error = Limit("5000 tokens")
    error.__cause__ = PromptTooLong("5000 tokens")
    return error


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (full(), 400, "prompt is too long: 5000 tokens"),
        (Limit("max_turns"), 400, "max_turns"),
        (MessageError("no role"), 400, "no role"),
        (RolloutEnded(), 409, "has ended"),
        (SessionClosed("over"), 409, "has ended"),
        (AuthenticationFailed("401"), 503, "refuses the run"),
        (ModelNotFound("404"), 503, "refuses the run"),
        (ConnectionFailed("reset"), 503, "reset"),
        (ClientGone("nobody waits"), 408, "nobody waits"),
        (unknown_key(), 401, "api_key"),
    ],
)
def test_each_fault_has_its_status(error: Exception, status: int, says: str) -> None:
    """And says what a person, or a program that compacts, acts on."""
    refusal = refusal_of(error)
    assert (refusal.status, says in refusal.message) == (status, True)


@pytest.mark.parametrize("error", [InvariantBroken("ids differ"), ZeroDivisionError("of ours")])
def test_what_nobody_foresaw_is_told_by_a_number(error: Exception) -> None:
    """Its text and its traceback are in the log only."""
    with capture_logs() as logs:
        refusal = refusal_of(error)
    (event,) = logs
    assert (refusal.status, str(error) in refusal.message) == (500, False)
    assert event["id"] in refusal.message


def test_only_what_may_pass_is_tried_again() -> None:
    """A client's own mistake would be the same again."""
    assert frozenset({408, 429, 503}) == RETRYABLE

"""What a worker says can always be said, whatever user code logged or put into its rollout."""

from __future__ import annotations

import pickle
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from rollout.observe.stats import Played
from rollout.play.player import PlayedEnv, Player
from rollout.records import FailureKind, Job
from rollout.workers import wire
from rollout.workers.channel import Channel
from rollout.workers.worker import MOST_TEXT, _frame, _Serving


class Unspeakable:
    """Raises whatever it is asked."""

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


_ODD = st.recursive(
    st.one_of(
        st.none(),
        st.integers(),
        st.floats(),
        st.text(st.characters(codec=None, exclude_categories=())),
        st.binary(),
        st.builds(Unspeakable),
        st.builds(object),
        st.builds(ValueError, st.just("\ud800")),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(_ODD, st.dictionaries(st.one_of(st.text(), st.integers()), _ODD, max_size=4))
def test_whatever_is_logged_can_be_sent(event: object, fields: dict[Any, Any]) -> None:
    """Surrogates, integers of any length, objects that raise when they are shown: each becomes readable text."""
    found = wire.decode_event(_frame("warning", event, dict(fields)))
    assert isinstance(found, wire.Logged)
    assert len(found.fields) <= len(fields)


def test_what_is_logged_is_bounded() -> None:
    """A field of many megabytes keeps its beginning and its end."""
    found = wire.decode_event(_frame("error", "big", {"text": "a" * 10**7 + "end"}))
    assert isinstance(found, wire.Logged)
    assert len(found.fields["text"]) < MOST_TEXT + 10
    assert found.fields["text"].endswith("end")


class _Heard:
    """Keeps what is sent, in a channel's place."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send(self, frame: bytes) -> None:
        self.frames.append(frame)


class _Idle:
    def played(self) -> Played:
        return Played(turns=3)


def test_a_rollout_that_cannot_be_sent_costs_itself() -> None:
    """The engine is answered with a failure that says why; nothing of the rollout's own is needed for it."""
    heard = _Heard()
    serving = _Serving(cast(Channel, heard), cast(Player, _Idle()), cast(PlayedEnv, None), pickle.loads)
    job = Job(task_index=1, task_id="1-a", task={"n": 1}, member=2, submitted_at=3)
    rollout = job.rollout()
    rollout.metrics["odd"] = cast(float, object())
    serving._say_ended(7, job, rollout)
    event = wire.decode_event(heard.frames[0])
    assert isinstance(event, wire.Ended)
    assert event.number == 7
    assert event.played.turns == 3
    found = wire.restored(event, job.task)
    assert (found.id, found.task_index, found.member, found.submitted_at) == ("1-a-2", 1, 2, 3)
    assert found.failure is not None
    assert found.failure.kind is FailureKind.INTERNAL
    assert "cannot be sent" in found.failure.message

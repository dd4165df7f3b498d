"""Stop texts: what is shown of an answer ends before the one that ended it."""

from __future__ import annotations

from typing import Any

import pytest

from rollout.chat.messages import Message
from rollout.dialects.stops import stopped
from tests.rollout.dialects.kit import call_of

SAID = Message("assistant", "Look.\nObservation: 4\nObs", "I think")
CALL = Message("assistant", "x", None, (call_of("add", "{}"),))


@pytest.mark.parametrize(
    ("message", "asked", "stop", "text", "reasoning"),
    [
        (SAID, {"stop": ["Observation:"]}, "Observation:", "Look.\n", "I think"),
        (SAID, {"stop": "4"}, "4", "Look.\nObservation: ", "I think"),
        (SAID, {"stop": ["4", "Look"]}, "Look", "", "I think"),
        (SAID, {"stop": ["Obs"]}, "Obs", "Look.\n", "I think"),
        (SAID, {"stop": ["Obs"], "min_tokens": 9}, "Obs", "Look.\nObservation: 4\n", "I think"),
        (SAID, {"stop": ["4"], "include_stop_str_in_output": True}, "4", SAID.text, "I think"),
        (SAID, {"stop": ["", "think"]}, None, SAID.text, "I think"),
        (SAID, {"stop": []}, None, SAID.text, "I think"),
        (SAID, {"temperature": 0.5}, None, SAID.text, "I think"),
        (Message("assistant", None, "I think so"), {"stop": ["think"]}, "think", "", "I "),
        (CALL, {"stop": ["x"]}, None, "x", None),
    ],
)
def test_what_is_shown_ends_before_the_stop_text(
    message: Message, asked: dict[str, Any], stop: str | None, text: str, reasoning: str | None
) -> None:
    """Before the first that is there, in a thought too where nothing else was said; a call is shown whole."""
    found, shown = stopped(message, asked)
    shown = shown or message
    assert (found, shown.text, shown.reasoning_content) == (stop, text, reasoning)

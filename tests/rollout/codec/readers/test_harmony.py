"""A header is what is written as one: a stray marker makes none of the text before it."""

from __future__ import annotations

import pytest

from rollout.codec.readers.harmony import HARMONY
from tests.rollout.codec.readers.kit import calls_of, read

PROMPT = "<|start|>assistant"


@pytest.mark.parametrize(
    "text",
    [
        "I say<|message|>Hello.",
        "Say to=functions.add<|message|>{}",
        "One\n<|channel|>analysis<|message|>Hello.",
        "<|message|",
        "a < b<|message|>c",
        "Hello.<|end|><|message|>there",
    ],
)
@pytest.mark.parametrize("prompt_end", [PROMPT, ""])
def test_text_before_a_stray_marker_is_no_header(text: str, prompt_end: str) -> None:
    """Nothing of it is lost, thought, or a call."""
    message = read(HARMONY, text, prompt_end=prompt_end)
    assert (message.content, message.reasoning_content, message.tool_calls) == (text, None, ())


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("<|message|>", "Hi."),
        ("<|channel|>final<|message|>", "Hi."),
        ("assistant<|channel|>final<|message|>", "Hi."),
        (" <|channel|>final <|constrain|>json<|message|>", "Hi."),
    ],
)
def test_the_rest_of_a_header_is_one_at_the_beginning_alone(header: str, said: str) -> None:
    """The prompt has written what comes before it."""
    assert read(HARMONY, header + said, prompt_end=PROMPT).content == said


def test_a_call_may_name_its_tool_first() -> None:
    """The recipient stands before the channel, or within it."""
    for header in (
        " to=functions.add<|channel|>commentary <|constrain|>json",
        "<|channel|>commentary to=functions.add ",
    ):
        message = read(HARMONY, header + '<|message|>{"a": 1}<|call|>', prompt_end=PROMPT)
        assert calls_of(message) == [("add", {"a": 1})]

"""Reasoning and content stay apart as the model wrote them, in each family's own tags."""

from __future__ import annotations

import pytest

from rollout.codec.readers.catalogue import FORMATS
from tests.rollout.codec.readers.kit import read


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "<think>\nWell.\n</think>\n\nYes."),
        ("glm", "\n<think>Well.</think>\nYes."),
        ("kimi", "<think>Well.</think>Yes."),
        ("kimi", "◁think▷Well.◁/think▷Yes."),
        ("mistral", "[THINK]Well.[/THINK]Yes."),
        ("granite", "<think>Well.</think>\n\n<response>Yes.</response>"),
        ("granite", "Here is my thought process:\n\nWell.\n\nHere is my response:\n\nYes."),
        ("granite", "Here's my thought process: Well.\n\nHere's my response:\nYes."),
        ("cohere", "<|START_THINKING|>Well.<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>"),
        ("seed", "<seed:think>Well.</seed:think>Yes."),
        ("gemma4", "<|channel>thought\nWell.\n<channel|>Yes."),
        ("harmony", "<|channel|>analysis<|message|>Well.<|end|><|start|>assistant<|channel|>final<|message|>Yes."),
        ("atem", " to=self<|message|>Well.<|eom|><|start|>assistant to=user<|message|>Yes."),
        ("inkling", "<|content_thinking|>Well.<|end_message|><|message_model|><|content_text|>Yes.<|end_message|>"),
    ],
)
def test_each_familys_tags(name: str, text: str) -> None:
    """As its documentation has them."""
    message = read(FORMATS[name], text, prompt_end="<|start|>assistant" if name == "harmony" else ".")
    assert ((message.reasoning_content or "").strip(), message.content) == ("Well.", "Yes.")


@pytest.mark.parametrize(
    ("before", "text", "reasoning", "content"),
    [
        ("<｜Assistant｜><think>\n", "Well.\n</think>\n\nYes.", "Well.", "Yes."),
        ("<｜Assistant｜><think>", "\nWell.\n</think>\n\nYes.", "Well.", "Yes."),
        ("<｜Assistant｜><think>\n", "<think>\nWell.\n</think>\n\nYes.", "Well.", "Yes."),
        ("<think>\n\n</think>\n\n", "The </think> tag.", None, "The </think> tag."),
        ("<｜Assistant｜>", "a <think>b</think>", None, "a <think>b</think>"),
        ("", "Well.\n</think>\n\nYes.", "Well.", "Yes."),
        (".", "<think>\n\n</think>\n\n  Yes.\n", None, "  Yes.\n"),
        ("<think>\n", "\n\u2028", None, "\n\u2028"),
        ("<think>", "\n \n", None, " \n"),
        (".", "<think>\n ", None, " "),
        ("<think>\n", "", None, None),
        ("<think>\n", " \n</think>", None, None),
        (".", "<think>\n  Well.\n\n</think>\n\n\nYes.", "  Well.\n", "\nYes."),
    ],
)
def test_where_reasoning_begins_and_ends(before: str, text: str, reasoning: str | None, content: str | None) -> None:
    """The prompt may have opened it, as R1's does, or closed it; behind an unknown prompt its close tells."""
    message = read(FORMATS["deepseek"], text, prompt_end=before)
    assert (message.reasoning_content, message.content) == (reasoning, content)

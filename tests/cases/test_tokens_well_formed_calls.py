"""What counts as a readable call: `tool_calls` are calls that can be used and handed back."""

from __future__ import annotations

import pytest

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.chat.canonical import canonical
from rollout.codec.local import Lane
from rollout.codec.types import make_context
from tests.cases.token_kit import CHATML, CHATML_TEMPLATE

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ('{"name": "f", "parameters": {"city": "Oslo"}}', {"city": "Oslo"}),
        ('{"name": "f", "arguments": [1, 2]}', None),
        ('{"name": "f", "arguments": "Oslo"}', None),
        ('{"name": "f", "arguments": 5}', None),
        ('{"name": "f", "arguments": {"a": NaN}}', None),
        ('{"name": "f", "arguments": {"a": 1e999}}', None),
        ('{"name": "f", "name": "g", "arguments": {}}', None),
        ('{"name": "f", "arguments": {}, "thought": "hm"}', None),
    ],
)
def test_calls_are_usable_or_malformed(call: str, arguments: dict[str, str] | None) -> None:
    """A call gives its object of arguments; what gives none is malformed, with its text in the content."""
    tokenizer = small_tokenizer(CHATML, eos="<|im_end|>", chat_template=CHATML_TEMPLATE)
    lane = Lane(tokenizer, None, "all", [tokenizer.eos_token_id])
    block = f"<tool_call>\n{call}\n</tool_call>"
    ids = tokenizer.encode(f"{block}<|im_end|>", add_special_tokens=False)
    message = lane.parse([1], ids, make_context(TOOLS, {}))
    assert [each.parsed_arguments() for each in message.tool_calls] == ([arguments] if arguments else [])
    assert [each.raw for each in message.malformed_tool_calls] == ([] if arguments else [block])
    assert (message.content == block) is not bool(arguments)
    canonical(message)
    assert lane.parse([1], ids, make_context([], {})).content == block

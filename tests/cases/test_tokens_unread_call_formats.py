"""Calls in a format other than Hermes, on a model without a `renderers` family."""

from __future__ import annotations

import pytest

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.codec.local import Lane
from rollout.codec.types import make_context

JINJA = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
MARKERS = ("</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|tool_call|>")
TOOLS = [
    {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    }
]


@pytest.mark.parametrize(
    "text",
    [
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]</s>',
        '[TOOL_CALLS]f[ARGS]{"a": 1}</s>',
        '<|python_tag|>{"name": "f", "parameters": {"a": 1}}</s>',
        '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]</s>',
    ],
)
@pytest.mark.parametrize("markers", [MARKERS, None])
def test_a_model_is_read_by_the_markers_that_it_has(text: str, markers: tuple[str, ...] | None) -> None:
    """Where its template writes no calls its tokens tell, those of one format or of several."""
    own = tuple(marker for marker in MARKERS if marker in text)
    tokenizer = small_tokenizer(markers or own, eos="</s>", chat_template=JINJA)
    lane = Lane(tokenizer, None, "all", [tokenizer.eos_token_id])
    message = lane.parse([1], tokenizer.encode(text, add_special_tokens=False), make_context(TOOLS, {}))
    assert [(call.name, call.parsed_arguments()) for call in message.tool_calls] == [("f", {"a": 1})]
    assert message.content is None

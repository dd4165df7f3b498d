"""A call whose JSON is nested deeper than Python's parser goes: what a policy that degenerates repeats."""

from __future__ import annotations

import pytest

from rollout.chat.messages import user
from rollout.codec.local import load_codec
from rollout.codec.readers import Sampled
from rollout.codec.readers.catalogue import FORMATS
from rollout.codec.tokenizer import load_tokenizer
from tests.cases.token_kit import start, turn
from transports.embedded import MODEL_DIR

DEEP = "[" * 3_000 + "]" * 3_000


@pytest.mark.parametrize("renderer", ["template", "qwen3"])
def test_a_call_nested_without_end_is_malformed(renderer: str) -> None:
    """The rollout goes on, and the environment is told."""
    text = f'<think>\n\n</think>\n\n<tool_call>\n{{"name": "f", "arguments": {DEEP}}}\n</tool_call><|im_end|>'
    codec = load_codec(str(MODEL_DIR), renderer=renderer)
    message = turn(start(load_tokenizer(str(MODEL_DIR)), [(text, "stop")], codec), [user("hi")])
    assert [call.reason for call in message.malformed_tool_calls] == ["invalid_json"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("deep", [DEEP, "[" * 3_000, "{" * 3_000, '{"a":' * 3_000, "f(a=" * 3_000, "(" * 3_000])
def test_no_reader_goes_down_without_end(name: str, deep: str) -> None:
    """In every format: behind its opener, as a value in JSON, and by itself."""
    reader = FORMATS[name]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    for opener in (*reader.openers, ""):
        for text in (
            f"{opener}{deep}",
            f'{opener}{{"name": "f", "arguments": {{"a": {deep}}}}}',
            f"{opener}[f(a={deep})]",
        ):
            assert not reader.read(Sampled(text=text, prompt_end=".", tools=tools)).tool_calls

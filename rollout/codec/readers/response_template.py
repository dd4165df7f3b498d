"""The response format that a tokenizer documents for transformers (`response_template`), read by transformers."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from rollout.chat.messages import Message, ToolCall
from rollout.codec.readers.pieces import Sampled
from rollout.codec.readers.plain import PLAIN
from rollout.codec.readers.values import NoCall, arguments_text, make_call
from rollout.door import well_formed


def is_known() -> bool:
    """Whether the installed transformers reads such formats: from 5.13 on it does."""
    return find_spec("transformers.utils.chat_parsing") is not None


class ResponseTemplate:
    """Reads by a tokenizer's own `response_template`. What transformers cannot read is text."""

    name = "response-template"

    def __init__(self, template: Mapping[str, Any]) -> None:
        self._template = template

    def read(self, sampled: Sampled) -> Message:
        """See `Reader`."""
        from transformers.utils.chat_parsing import parse_response

        try:
            found = parse_response(
                sampled.text, dict(self._template), prefix=sampled.prompt_end, tools=list(sampled.tools)
            )
            calls = tuple(_call(call["function"]) for call in found.get("tool_calls") or ())
        except Exception:  # it raises ValueError, KeyError, JSON's errors: for what a model sampled
            return PLAIN.read(sampled)
        if calls and not sampled.tools:
            return PLAIN.read(sampled)
        return Message(
            "assistant",
            content=_text(found.get("content")),
            reasoning_content=_text(found.get("reasoning_content")) or _text(found.get("thinking")),
            tool_calls=calls,
        )


def _call(function: Mapping[str, Any]) -> ToolCall:
    name = function.get("name")
    if not isinstance(name, str):
        raise NoCall("missing_name")
    return make_call(name, arguments_text(function.get("arguments") or {}))


def _text(value: Any) -> str | None:
    return well_formed(value) or None if isinstance(value, str) else None

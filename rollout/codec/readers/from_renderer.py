"""What the parsers of `renderers` find, as a message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rollout.chat.messages import Function, MalformedToolCall, Message, ToolCall
from rollout.door import Refused, plain, well_formed


def _arguments_text(arguments: Any) -> str:
    """Raises Refused for what is no JSON: NaN, or nested deeper than anyone reads."""
    if arguments is None:
        return "{}"
    arguments = plain(arguments)
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def from_renderer(parsed: Any, ids: Sequence[int], decode: Any) -> Message:
    """A message from what a `renderers` parser found (its `ParsedResponse`).

    `ids` are the completion without its stop tokens: the parser's spans point into them.
    """
    calls: list[ToolCall] = []
    malformed: list[MalformedToolCall] = []
    for call in parsed.tool_calls:
        read = _renderers_call(call)
        if isinstance(read, ToolCall):
            calls.append(read)
        else:
            raw = decode(ids[slice(*call.token_span)]) if call.token_span else call.raw
            malformed.append(MalformedToolCall(well_formed(raw or ""), read))
    # The raw text also stays in the content: a prompt rendered from messages must show what was said.
    content = "\n".join(filter(None, [parsed.content, *(call.raw for call in malformed)]))
    return Message(
        "assistant",
        content=well_formed(content) or None,
        reasoning_content=well_formed(parsed.reasoning_content or "") or None,
        tool_calls=tuple(calls),
        malformed_tool_calls=tuple(malformed),
    )


def _renderers_call(call: Any) -> ToolCall | str:
    """The call, or why it is none."""
    # UNKNOWN_TOOL is well-formed: whether a tool exists is the environment's to say. A name that is a number
    # passes the parser too, and every server refuses a conversation with one in it.
    if call.status.value not in ("ok", "unknown_tool"):
        return str(call.status.value)
    if not isinstance(call.name, str) or not call.name:
        return "missing_name"
    try:
        function = Function(well_formed(call.name), _arguments_text(call.arguments))
    except Refused:
        return "invalid_json"
    return ToolCall(function=function, id=well_formed(call.id) if isinstance(call.id, str) else None)

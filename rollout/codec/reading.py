"""The assistant's message, read from the sampled ids: text, reasoning, tool calls, malformed calls.

Read here on both routes, whatever the server parsed, so that a server's tool parser, or its absence,
changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from rollout.chat.messages import Function, MalformedToolCall, Message, ToolCall, read_json
from rollout.door import Refused, plain, well_formed

_TOOL_CALL = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)


def number_calls(message: Message, first: int) -> Message:
    """Gives calls without an id one: nine letters and digits, as Mistral's templates demand, counted from `first`."""
    if all(call.id for call in message.tool_calls):
        return message
    calls = tuple(
        call if call.id else msgspec.structs.replace(call, id=f"call{first + i:05d}")
        for i, call in enumerate(message.tool_calls)
    )
    return msgspec.structs.replace(message, tool_calls=calls)


def parse_text(text: str, *, in_reasoning: bool) -> Message:
    """Reads `<think>` reasoning and Hermes tool calls (`<tool_call>{json}</tool_call>`) from text.

    `in_reasoning` tells that the prompt ended inside an open `<think>`. What is malformed stays in the
    content, and is listed in `malformed_tool_calls`.
    """
    reasoning, content = _split_reasoning(well_formed(text), in_reasoning)
    calls: list[ToolCall] = []
    malformed: list[MalformedToolCall] = []

    def take(match: re.Match[str]) -> str:
        parsed = _hermes_call(match[1].strip(), closed=bool(match[2]))
        if isinstance(parsed, ToolCall):
            calls.append(parsed)
            return ""
        malformed.append(MalformedToolCall(match[0], parsed))
        return match[0]

    content = _TOOL_CALL.sub(take, content)
    return Message(
        "assistant",
        content=content.strip() or None,
        reasoning_content=(reasoning or "").strip() or None,
        tool_calls=tuple(calls),
        malformed_tool_calls=tuple(malformed),
    )


def _split_reasoning(text: str, in_reasoning: bool) -> tuple[str | None, str]:
    opened = text.lstrip().startswith("<think>")
    if not (in_reasoning or opened):
        return None, text
    body = text.split("<think>", 1)[1] if opened else text
    reasoning, _, content = body.partition("</think>")
    return reasoning, content


def _hermes_call(text: str, *, closed: bool) -> ToolCall | str:
    """The call, or why it cannot be read."""
    if not closed:
        return "unclosed_block"
    try:
        value = read_json(text)
    except ValueError:
        return "invalid_json"
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return "missing_name"
    return ToolCall(function=Function(value["name"], _arguments_text(value.get("arguments"))))


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

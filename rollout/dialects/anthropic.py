"""Anthropic Messages: requests are read here, answers written in `anthropic_answer`.

system: blocks              -> one system message; a billing preamble, another in each conversation, is left out
user: tool_result, text     -> tool messages, then a user message
assistant: thinking, text, tool_use   -> one message, the model's own where it said it
system, in the middle       -> a system message at its place
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from rollout.chat.messages import Function, Message, ToolCall
from rollout.dialects import anthropic_answer, sampling, tools
from rollout.dialects.fields import Fields, decoded, unsupported
from rollout.dialects.memory import Known, Memory
from rollout.dialects.types import Call, DialectError, Said

_KIND = b"anthropic"
_SYSTEM_KIND = b"anthropic-system"

#: Fields that say nothing to the model.
_IGNORED = frozenset(
    {
        *("service_tier", "inference_geo", "betas", "anthropic_beta", "anthropic_version", "cache_control", "speed"),
        *("thinking", "diagnostics", "user_profile_id", "fallbacks"),
    }
)

_REFUSED: Mapping[str, str] = {
    "mcp_servers": "tools of MCP servers are called by the program itself",
    "container": "there are no containers here",
}

#: Begins a line of Claude Code's system prompt that differs from conversation to conversation.
_BILLING = "x-anthropic-billing-header"

_SESSION = re.compile(r"_session_([\w-]+)$")


class Anthropic:
    """`POST /v1/messages`, and `/v1/messages/count_tokens`."""

    name = "anthropic"

    def read(self, body: bytes, memory: Memory) -> Call:
        fields = Fields(body)
        call = Call(model=fields.take("model", str) or "", messages=[])
        left_out = list[str]()
        if (raw := fields.raw("tools")) is not None:
            offered = memory.tools(raw, _KIND, _tools)
            call.tools, left_out = offered.specs, [*offered.left_out]
        self._options(fields, call, left_out)
        if (system := fields.raw("system")) is not None:
            memory.read([memory.item(system, _SYSTEM_KIND, lambda raw: _system(raw, memory))], call, join=False)
        read = _Reader(memory)
        before = len(call.messages)
        last = memory.conversation(fields.required("messages"), "messages", _KIND, read.decode, call, join=True)
        if last is None and len(call.messages) == before:
            raise DialectError.of_field("messages", "at least one message is needed")
        if last is not None and last.said:
            why = "the last message is the assistant's, and an answer cannot go on from it: end with a user message"
            raise DialectError.of_field("messages", why)
        fields.refuse(_REFUSED)
        fields.ignore(_IGNORED)
        call.left_out = (*left_out, *(f"the field {name}" for name in fields.rest))
        return call

    def body(self, said: Said, call: Call, memory: Memory) -> bytes:
        return anthropic_answer.body(said, call, memory)

    def events(self, said: Said, call: Call, memory: Memory) -> Iterator[bytes]:
        return anthropic_answer.events(said, call, memory)

    def count_body(self, tokens: int) -> bytes:
        """The answer to `count_tokens`, whose request is read as any other: the tokens of its prompt."""
        return msgspec.json.encode({"input_tokens": tokens})

    def error(self, error: DialectError) -> bytes:
        return msgspec.json.encode(anthropic_answer.error_fields(error))

    def error_event(self, error: DialectError) -> bytes:
        return anthropic_answer.error_event(error)

    def _options(self, fields: Fields, call: Call, left_out: list[str]) -> None:
        call.stream = fields.take("stream", bool) or False
        call.max_tokens = sampling.cap(fields, "max_tokens")
        call.session = _session(fields.take("metadata", dict[str, Any]) or {})
        call.template_args = fields.take("chat_template_kwargs", dict[str, Any]) or {}
        asked = {name: fields.take(name, kind) for name, kind in sampling.COMMON.items()}
        asked["stop"] = fields.take("stop_sequences", list[str]) or None
        config = fields.take("output_config", dict[str, Any]) or {}
        call.effort = config.get("effort") if isinstance(config.get("effort"), str) else None
        wanted = fields.take("output_format", dict[str, Any]) or config.get("format")
        asked["response_format"] = _response_format(wanted)
        asked |= _tool_choice(fields.take("tool_choice", dict[str, Any]) or {}, call)
        call.sampling = sampling.given(asked)
        edits = (fields.take("context_management", dict[str, Any]) or {}).get("edits") or []
        if not isinstance(edits, list):
            raise DialectError.of_field("context_management.edits", "must be a list")
        kinds = [str(edit.get("type")) for edit in edits if isinstance(edit, dict)]
        # Thinking is kept, as whoever asks for it may want; what was once in a prompt stays in it.
        left_out += [f"context_management {kind}" for kind in kinds if not kind.startswith("clear_thinking")]


def _tools(raw: msgspec.Raw) -> tools.Tools:
    found = list[dict[str, Any]]()
    for at, tool in enumerate(decoded(raw, list[dict[str, Any]], "tools")):
        if (kind := tool.get("type") or "custom") != "custom":
            raise unsupported(f"tools[{at}].type", f"{kind!r} is a tool of Anthropic's own, only custom ones")
        name, schema = tool.get("name"), tool.get("input_schema")
        if not isinstance(name, str) or not name:
            raise DialectError.of_field(f"tools[{at}].name", "is required, as text")
        if schema is not None and not isinstance(schema, dict):
            raise DialectError.of_field(f"tools[{at}].input_schema", "must be an object")
        found.append(tools.function(name, tools.description(tool, f"tools[{at}]"), schema))
    return tools.Tools(specs=tuple(found))


def _tool_choice(asked: Mapping[str, Any], call: Call) -> dict[str, Any]:
    kind = asked.get("type", "auto")
    if kind not in ("auto", "any", "tool", "none"):
        raise DialectError.of_field("tool_choice.type", f"must be auto, any, tool or none, not {kind!r}")
    choice = {"type": "function", "name": asked.get("name")} if kind == "tool" else kind
    one = asked.get("disable_parallel_tool_use") is True
    return {
        "tool_choice": sampling.tool_choice("required" if choice == "any" else choice, call.tools),
        "parallel_tool_calls": False if one else None,
    }


def _response_format(wanted: Any) -> dict[str, Any] | None:
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") != "json_schema" or not isinstance(wanted.get("schema"), dict):
        raise unsupported("output_config.format", f"a format of type {wanted.get('type')!r}, only json_schema")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted["schema"]}}


def _session(metadata: Mapping[str, Any]) -> str | None:
    """The session that Claude Code names in `metadata.user_id`: JSON, or text that ends in it."""
    user = metadata.get("user_id")
    if not isinstance(user, str):
        return None
    if found := _SESSION.search(user):
        return found[1][:128]
    try:
        named = json.loads(user)
    except (ValueError, RecursionError):
        return None
    session = named.get("session_id") if isinstance(named, dict) else None
    return session[:128] if isinstance(session, str) else None


def _system(raw: msgspec.Raw, memory: Memory) -> Known:
    text = _system_text(decoded(raw, str | list[dict[str, Any]], "system"), "system")
    return memory.known([Message("system", text)] if text else [])


def _system_text(content: str | list[dict[str, Any]], place: str) -> str:
    blocks: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts = [_without_billing(_text(block, f"{place}[{at}]")) for at, block in enumerate(blocks)]
    return "\n".join(filter(None, texts))


def _without_billing(text: str) -> str:
    """A system text without the preamble, which is a block of its own, or where blocks were joined the first line."""
    return text.partition("\n")[2].lstrip("\n") if text.startswith(_BILLING) else text


class _Reader:
    """Reads one request's messages."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def decode(self, raw: msgspec.Raw, place: str) -> Known:
        plain = decoded(raw, dict[str, Any], place)
        role, content = plain.get("role"), plain.get("content")
        if role not in ("user", "assistant", "system"):
            raise DialectError.of_field(f"{place}.role", f"must be user, assistant or system, not {role!r}")
        place = f"{place}.content"
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
            raise DialectError.of_field(place, "must be text or a list of blocks")
        if role == "assistant":
            return self._said(content, place)
        if role == "system":
            return self._memory.known([Message("system", _system_text(content, place))])
        return self._memory.known(self._asked(content, place))

    def _said(self, blocks: list[dict[str, Any]], place: str) -> Known:
        texts, thoughts, calls, keys = list[str](), list[str](), list[ToolCall](), list[str]()
        for at, block in enumerate(blocks):
            here = f"{place}[{at}]"
            match block.get("type"):
                case "text":
                    texts.append(_text(block, here))
                case "thinking":
                    thoughts.append(_field(block, "thinking", here))
                    keys.append(_field(block, "signature", here))
                case "redacted_thinking":
                    keys.append(_field(block, "data", here))
                case "tool_use":
                    calls.append(_tool_use(block, here))
                case kind:
                    raise unsupported(here, f"blocks of type {kind!r} in what the assistant said")
        keys += [call.id for call in calls if call.id]
        message = Message(
            "assistant", "\n".join(filter(None, texts)) or None, "\n".join(filter(None, thoughts)) or None, tuple(calls)
        )
        thought = any(block.get("type") in ("thinking", "redacted_thinking") for block in blocks)
        return self._memory.known([message], said=True, keys=tuple(filter(None, keys)), begins=thought)

    def _asked(self, blocks: list[dict[str, Any]], place: str) -> list[Message]:
        """A user's message: results of tools are messages of their own, in the order of the blocks."""
        found, parts = list[Message](), list[dict[str, Any]]()
        for at, block in enumerate(blocks):
            here = f"{place}[{at}]"
            if block.get("type") != "tool_result":
                parts.append(_part(block, here))
                continue
            if parts:
                found.append(Message("user", _content(parts)))
                parts = []
            found.append(self._result(block, here))
        return [*found, Message("user", _content(parts))] if parts or not found else found

    def _result(self, block: dict[str, Any], place: str) -> Message:
        wire = _field(block, "tool_use_id", place)
        if not wire:
            raise DialectError.of_field(f"{place}.tool_use_id", "is required")
        given = block.get("content") or []
        blocks = [{"type": "text", "text": given}] if isinstance(given, str) else given
        if not isinstance(blocks, list) or not all(isinstance(each, dict) for each in blocks):
            raise DialectError.of_field(f"{place}.content", "must be text or a list of blocks")
        content = _content([_part(each, f"{place}.content[{at}]") for at, each in enumerate(blocks)])
        if block.get("is_error") is True:
            content = _as_error(content)
        return Message("tool", content, tool_call_id=self._memory.own_call_id(wire))


def _as_error(content: str | tuple[dict[str, Any], ...] | None) -> str | tuple[dict[str, Any], ...]:
    """A result that says itself that it is an error: no template has a place for that beside the text."""
    if isinstance(content, tuple):
        return ({"type": "text", "text": "Error:"}, *content)
    if content and "error" in content[:64].lower():
        return content
    return f"Error: {content}" if content else "Error"


def _content(parts: list[dict[str, Any]]) -> str | tuple[dict[str, Any], ...] | None:
    """The parts; text alone is one text, its lines joined as servers join them."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts if part["text"]) or None
    return tuple(parts)


def _part(block: dict[str, Any], place: str) -> dict[str, Any]:
    """A block that a user or a tool shows, as a part in OpenAI's form."""
    match block.get("type"):
        case "text":
            return {"type": "text", "text": _text(block, place)}
        case "image":
            return {"type": "image_url", "image_url": {"url": _image(block.get("source"), place)}}
        case "document" if isinstance(source := block.get("source"), dict) and source.get("type") == "text":
            return {"type": "text", "text": _field(source, "data", place)}
        case "search_result" if isinstance(inner := block.get("content"), list):
            texts = [_text(each, place) for each in inner if isinstance(each, dict)]
            return {"type": "text", "text": "\n".join([_field(block, "title", place), *texts])}
        case kind:
            raise unsupported(place, f"blocks of type {kind!r} in this form")


def _image(source: Any, place: str) -> str:
    match source:
        case {"type": "url", "url": str(url)}:
            return url
        case {"type": "base64", "media_type": str(media), "data": str(data)}:
            return f"data:{media};base64,{data}"
        case {"type": kind}:
            raise unsupported(f"{place}.source", f"images by {kind!r}, only by url and base64")
    raise DialectError.of_field(f"{place}.source", "must be an object with a type")


def _tool_use(block: dict[str, Any], place: str) -> ToolCall:
    name, given = _field(block, "name", place), block.get("input")
    if not name or not isinstance(given, dict | None):
        raise DialectError.of_field(place, "a tool use has a name, and its input is an object")
    text = json.dumps(given or {}, ensure_ascii=False)
    return ToolCall(function=Function(name, text), id=_field(block, "id", place) or None)


def _text(block: dict[str, Any], place: str) -> str:
    if block.get("type", "text") != "text":
        raise unsupported(place, f"blocks of type {block.get('type')!r}, only text")
    return _field(block, "text", place)


def _field(block: Mapping[str, Any], name: str, place: str) -> str:
    """A field of a block that is text; "" where it is absent."""
    value = block.get(name)
    if value is not None and not isinstance(value, str):
        raise DialectError.of_field(f"{place}.{name}", f"must be text, not {type(value).__name__}")
    return value or ""

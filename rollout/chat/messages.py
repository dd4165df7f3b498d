"""Chat messages: one type for every form that callers hand in.

`Message.of` takes a dict, a msgspec struct, a pydantic model or a dataclass; `as_openai` gives the dict that
servers and chat templates take. How two messages compare is in `rollout.chat.canonical`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from rollout import door
from rollout.errors import MessageError

#: Keys that clients add and that no template reads: whatever they hold, at whatever depth, the message is the same.
#: Cache marks move from message to message; LiteLLM and LangChain add what a provider said beside the message.
NOISE_KEYS = frozenset(
    {
        *("refusal", "annotations", "audio", "thinking_blocks", "index", "malformed_tool_calls"),
        *("cache_control", "provider_specific_fields", "function_call", "citations"),
        *("additional_kwargs", "response_metadata", "usage_metadata", "lc_attributes", "invalid_tool_calls", "example"),
    }
)

#: Keys of a message itself that say whose it is or what it is called elsewhere.
_NAMES = frozenset({"id", "type", "status", "artifact"})

#: LangChain's own word for each role, in messages that say no role.
_ROLES_BY_TYPE = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}

_FIELDS = frozenset({"role", "content", "reasoning_content", "reasoning", "tool_calls", "tool_call_id", "name"})


class Function(msgspec.Struct, frozen=True, gc=False):
    """The function that a tool call names."""

    name: str
    arguments: str = ""
    """JSON text exactly as the model wrote it; `ToolCall.parsed_arguments` reads it."""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One well-formed call of a tool, in OpenAI's shape."""

    function: Function
    id: str | None = None
    type: str = "function"

    @property
    def name(self) -> str:
        return self.function.name

    def parsed_arguments(self) -> dict[str, Any]:
        """The arguments as a dict; a NaN stays one. Raises MessageError where they are not a JSON object."""
        try:
            value = read_json(self.function.arguments or "{}", not_finite="keep")
        except ValueError as error:
            raise MessageError(f"tool call {self.name!r}: arguments are not JSON: {error}") from error
        if not isinstance(value, dict):
            raise MessageError(f"tool call {self.name!r}: arguments are {type(value).__name__}, not an object")
        return value


class MalformedToolCall(msgspec.Struct, frozen=True, gc=False):
    """A tool call that the model tried and got wrong. Its text also stays in the message's content."""

    raw: str
    """The block as sampled, decoded."""
    reason: str
    """Why it could not be read: invalid_json, unclosed_block, missing_name, malformed_structure."""


class Message(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One message of a conversation. Immutable: the tree and the environment share it."""

    role: str
    content: str | tuple[dict[str, Any], ...] | None = None
    """Text, or the parts of a multi-part message in OpenAI's form."""
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """On a tool message: the id of the call that it answers."""
    name: str | None = None
    malformed_tool_calls: tuple[MalformedToolCall, ...] = ()
    """What the parser could not read, for the environment to answer. Never compared, never sent."""
    extra: dict[str, Any] = {}
    """Further keys of the caller's: sent to templates and servers, and compared."""

    @classmethod
    def of(cls, value: object) -> Message:
        """Reads a message in any form a caller has. Raises MessageError, naming what is wrong.

        A Message is returned as it is, unless it holds what cannot be written: then it is made anew.
        """
        return value if isinstance(value, Message) and _is_whole(value) else _made_whole(value)

    @property
    def text(self) -> str:
        """The text of the content; "" where there is none. Text parts are its lines, as servers join them.

        Empty ones are left out, as by vLLM.
        """
        if isinstance(self.content, tuple):
            return "\n".join(
                part["text"] for part in self.content if isinstance(part.get("text"), str) and part["text"]
            )
        return self.content or ""

    @property
    def is_multimodal(self) -> bool:
        """Whether a part is something other than text (an image, audio, a file)."""
        return isinstance(self.content, tuple) and any(part.get("type", "text") != "text" for part in self.content)

    @property
    def images(self) -> tuple[str, ...] | None:
        """The addresses of its images, in their order; None where it has parts that are neither images nor text."""
        parts = self.content if isinstance(self.content, tuple) else ()
        found = [_image_url(part) for part in parts if part.get("type", "text") != "text"]
        return None if None in found else tuple(filter(None, found))

    def as_openai(self) -> dict[str, Any]:
        """The message as a dict in OpenAI's form, without empty keys; `content` is always there."""
        content: Any = list(self.content) if isinstance(self.content, tuple) else self.content
        out: dict[str, Any] = {"role": self.role, "content": content if content is not None else ""}
        if self.reasoning_content:
            out["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            out["tool_calls"] = [msgspec.to_builtins(call) for call in self.tool_calls]
        for key in ("tool_call_id", "name"):
            if value := getattr(self, key):
                out[key] = value
        return {**out, **self.extra}


def _image_url(part: dict[str, Any]) -> str | None:
    """The address of an image, `data:` mostly; None for a part that is none in OpenAI's form."""
    image = part.get("image_url") if part.get("type") == "image_url" else None
    url = image.get("url") if isinstance(image, dict) else image
    return url if isinstance(url, str) and url else None


def images_of(messages: Sequence[Message]) -> tuple[str, ...] | None:
    """The addresses of a conversation's images; None where it has audio, a file, or what nobody knows."""
    found: list[str] = []
    for message in messages:
        if not message.is_multimodal:
            continue
        if (images := message.images) is None:
            return None
        found += images
    return tuple(found)


def system(text: str) -> Message:
    return Message("system", text)


def user(text: str) -> Message:
    return Message("user", text)


def tool(text: str, *, call: ToolCall | str) -> Message:
    """The answer to one tool call, given as the call or as its id."""
    if isinstance(call, ToolCall):
        return Message("tool", text, tool_call_id=call.id, name=call.name)
    return Message("tool", text, tool_call_id=call)


def with_tool_names(messages: Sequence[Message]) -> list[Message]:
    """Gives each tool message the function's name from the call that it answers, where it has none.

    Renderers such as gpt-oss's write the name into the prompt and raise without it.
    """
    names = {call.id: call.name for message in messages for call in message.tool_calls if call.id}
    return [
        msgspec.structs.replace(message, name=names[message.tool_call_id])
        if message.role == "tool" and not message.name and message.tool_call_id in names
        else message
        for message in messages
    ]


def read_json(text: str, *, not_finite: door.NotFinite = "refuse") -> Any:
    """Plain data from JSON that a model wrote. Raises ValueError, also for JSON that is too deep to be read."""
    try:
        return door.plain(json.loads(text), not_finite=not_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def plain_value(value: Any) -> Any:
    """The value as dicts, lists and scalars (`rollout.door.plain`). Raises MessageError, with the place."""
    try:
        return door.plain(value)
    except door.Refused as refused:
        raise MessageError(f"a message cannot be written: {refused}") from refused


def _is_whole(message: Message) -> bool:
    """Whether everything of a message can be written, and is of the type that it should be.

    Whoever makes a Message may put anything into it. Asked of every message of every turn, so it costs little.
    """
    return (
        _is_text(message.role)
        and (message.content is None or _is_text(message.content) or _are_parts(message.content))
        and (message.reasoning_content is None or _is_text(message.reasoning_content))
        and (message.tool_call_id is None or _is_text(message.tool_call_id))
        and (message.name is None or _is_text(message.name))
        and (not message.tool_calls or _are_calls(message.tool_calls))
        and (not message.extra or door.is_plain(message.extra))
    )


def _is_text(value: object) -> bool:
    return type(value) is str and (value.isascii() or door.is_well_formed(value))


def _are_parts(content: object) -> bool:
    return type(content) is tuple and all(
        type(part) is dict and part.get("type") and door.is_plain(part) for part in content
    )


def _are_calls(calls: object) -> bool:
    return type(calls) is tuple and all(
        type(call) is ToolCall
        and _is_text(call.function.name)
        and _is_text(call.function.arguments)
        and (call.id is None or _is_text(call.id))
        and _is_text(call.type)
        for call in calls
    )


def _made_whole(value: object) -> Message:
    plain = plain_value(value)
    if not isinstance(plain, dict):
        raise MessageError(f"a message must be a dict, struct, pydantic model or dataclass, not {type(value).__name__}")
    message = _from_plain(plain)
    if isinstance(value, Message) and value.malformed_tool_calls:
        return msgspec.structs.replace(message, malformed_tool_calls=value.malformed_tool_calls)
    return message


def _from_plain(plain: dict[str, Any]) -> Message:
    role = plain.get("role") or _ROLES_BY_TYPE.get(str(plain.get("type")))
    if not isinstance(role, str) or not role:
        raise MessageError(f"a message needs a role, as text; its keys are {sorted(plain)}")
    # What lies deeper is kept as it came, and is left out where messages are compared.
    known = _FIELDS | _NAMES | NOISE_KEYS
    extra = {key: value for key, value in plain.items() if key not in known and not _empty(value)}
    if isinstance(nested := extra.pop("extra", None), dict):
        extra |= nested
    calls = plain.get("tool_calls") or ()
    if not isinstance(calls, list | tuple):
        raise MessageError(f"message key 'tool_calls' must be a list, not {type(calls).__name__}")
    return Message(
        role=role,
        content=_content(plain.get("content")),
        reasoning_content=_text(plain, "reasoning_content") or _text(plain, "reasoning"),
        tool_calls=tuple(map(_tool_call, calls)),
        tool_call_id=_text(plain, "tool_call_id"),
        name=_text(plain, "name"),
        extra=extra,
    )


def pruned(value: Any) -> Any:
    """A value without what carries nothing: `NOISE_KEYS`, and keys with nothing in them, at any depth."""
    if isinstance(value, dict):
        kept = {key: pruned(item) for key, item in value.items() if key not in NOISE_KEYS}
        return {key: item for key, item in kept.items() if not _empty(item)}
    return [pruned(item) for item in value] if isinstance(value, list | tuple) else value


def _empty(value: Any) -> bool:
    return value is None or value == "" or value == [] or value == {}


def _text(plain: dict[str, Any], key: str) -> str | None:
    value = plain.get(key)
    if value is not None and not isinstance(value, str):
        raise MessageError(f"key {key!r} must be text, not {type(value).__name__}")
    return value or None


def _content(value: Any) -> str | tuple[dict[str, Any], ...] | None:
    if value is None or isinstance(value, str):
        return value or None
    if not isinstance(value, list):
        raise MessageError(f"message content must be text or a list of parts, not {type(value).__name__}")
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in value]
    if not all(isinstance(part, dict) for part in parts):
        raise MessageError("every content part must be text or an object")
    parts = [_part(part) for part in parts]
    for part in parts:
        if part.get("type", "text") == "text" and not isinstance(part.get("text", ""), str):
            raise MessageError(f"a text part's text must be text, not {type(part['text']).__name__}")
    if len(parts) == 1 and parts[0].keys() <= {"type", "text"} and parts[0].get("type", "text") == "text":
        return parts[0].get("text") or None
    return tuple(parts) or None


def _part(part: dict[str, Any]) -> dict[str, Any]:
    """A content part without what carries nothing. What it is called after is its content: a part `audio` has audio."""
    kind = part.get("type") or "text"
    if not part.get("type") and "text" not in part:
        raise MessageError(f"a content part needs a type; its keys are {sorted(map(str, part))}")
    kind = "text" if kind in ("input_text", "output_text") else kind  # as the Responses API calls it
    own = {kind: part[kind]} if kind in NOISE_KEYS and kind in part else {}
    if kind == "text" and "text" not in part and (others := part.keys() - {"type"} - NOISE_KEYS):
        raise MessageError(f"a text part has no text; its other keys are {sorted(map(str, others))}")
    return {**pruned(part), **own, "type": kind}


def _tool_call(value: Any) -> ToolCall:
    if not isinstance(value, dict):
        raise MessageError(f"a tool call must be an object, not {type(value).__name__}")
    function = value.get("function") or value
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise MessageError(f"a tool call needs function.name; its keys are {sorted(value)}")
    arguments = function.get("arguments")
    if arguments is None:
        arguments = ""
    if not isinstance(arguments, str):
        arguments = _dump_strict(arguments)
    return ToolCall(function=Function(name, arguments), id=_text(value, "id"), type=_text(value, "type") or "function")


def _dump_strict(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise MessageError(f"tool-call arguments cannot be JSON: {error}") from error

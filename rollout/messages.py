"""Chat messages: one type for every form that callers hand in.

`Message.of` takes a dict, a msgspec struct, a pydantic model or a dataclass; `as_openai` gives the dict that
servers and chat templates take. How two messages compare is in `rollout.canonical`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from rollout.errors import MessageError

#: Keys that clients add and that no template reads: whatever they hold, the message is the same.
NOISE_KEYS = frozenset({"refusal", "annotations", "audio", "thinking_blocks", "index", "malformed_tool_calls"})

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
        """The arguments as a dict. Raises MessageError where they are not a JSON object."""
        try:
            value = json.loads(self.function.arguments or "{}")
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
        """Reads a message in any form a caller has. Raises MessageError, naming what is wrong."""
        return value if isinstance(value, Message) else _fromplain_value(_plain_mapping(value))

    @property
    def text(self) -> str:
        """The text of the content, parts joined; "" where there is none."""
        if isinstance(self.content, tuple):
            return "".join(part["text"] for part in self.content if isinstance(part.get("text"), str))
        return self.content or ""

    @property
    def is_multimodal(self) -> bool:
        """Whether a part is something other than text (an image, audio, a file)."""
        return isinstance(self.content, tuple) and any(part.get("type", "text") != "text" for part in self.content)

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


def _plain_mapping(value: object) -> dict[str, Any]:
    plain = plain_value(value)
    if not isinstance(plain, dict):
        raise MessageError(f"a message must be a dict, struct, pydantic model or dataclass, not {type(value).__name__}")
    return plain


def plain_value(value: Any) -> Any:
    """The value as dicts, lists and scalars. Copies containers, so that the caller's later changes do not reach us."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, msgspec.Struct):
        return {name: plain_value(getattr(value, name)) for name in value.__struct_fields__}
    if hasattr(value, "model_dump"):  # pydantic, without importing it
        return plain_value(value.model_dump(mode="json"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_value(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Iterable) and not isinstance(value, bytes | bytearray | set | frozenset):
        return [plain_value(item) for item in value]
    raise MessageError(f"a message cannot hold a value of type {type(value).__name__}")


def _fromplain_value(plain: dict[str, Any]) -> Message:
    role = plain.get("role")
    if not isinstance(role, str) or not role:
        raise MessageError(f"a message needs a role, as text; its keys are {sorted(plain)}")
    extra = {k: v for k, v in plain.items() if k not in _FIELDS and k not in NOISE_KEYS and not _empty(v)}
    if isinstance(nested := extra.pop("extra", None), dict):
        extra |= nested
    return Message(
        role=role,
        content=_content(plain.get("content")),
        reasoning_content=_text(plain, "reasoning_content") or _text(plain, "reasoning"),
        tool_calls=tuple(_tool_call(call) for call in plain.get("tool_calls") or ()),
        tool_call_id=_text(plain, "tool_call_id"),
        name=_text(plain, "name"),
        extra=extra,
    )


def _empty(value: Any) -> bool:
    return value is None or value == "" or value == [] or value == {}


def _text(plain: dict[str, Any], key: str) -> str | None:
    value = plain.get(key)
    if value is not None and not isinstance(value, str):
        raise MessageError(f"message key {key!r} must be text, not {type(value).__name__}")
    return value or None


def _content(value: Any) -> str | tuple[dict[str, Any], ...] | None:
    if value is None or isinstance(value, str):
        return value or None
    if not isinstance(value, list):
        raise MessageError(f"message content must be text or a list of parts, not {type(value).__name__}")
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in value]
    if not all(isinstance(part, dict) for part in parts):
        raise MessageError("every content part must be text or an object")
    parts = [{k: v for k, v in part.items() if k not in NOISE_KEYS and v is not None} for part in parts]
    if len(parts) == 1 and parts[0].keys() <= {"type", "text"} and parts[0].get("type", "text") == "text":
        return parts[0].get("text") or None
    return tuple(parts) or None


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
    return ToolCall(
        function=Function(name, arguments), id=value.get("id") or None, type=value.get("type") or "function"
    )


def _dump_strict(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise MessageError(f"tool-call arguments cannot be JSON: {error}") from error

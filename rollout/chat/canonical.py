"""The bytes by which two messages compare: is this the turn that the tree has?

Two messages are the same turn of a conversation if and only if their canonical bytes are equal. `Match` widens
that, for agents that rewrite their own tool calls or drop reasoning before they send a conversation again.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import math
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from json.encoder import encode_basestring
from typing import Any, Literal

from rollout.chat.messages import Message, ToolCall, plain_value, pruned
from rollout.door import MOST_DEEP
from rollout.errors import MessageError
from rollout.memo import Memo

#: What must be equal for two messages to be the same turn:
#: strict           everything that a template could render
#: loose_tool_call  all of it, but of tool calls only the functions' names, and no call ids
#: role_content     role and content
Match = Literal["strict", "loose_tool_call", "role_content"]


def canonical(message: object, match: Match = "strict") -> bytes:
    """The bytes that are compared. Equal bytes mean the same message.

    Absent, None and "" are one; a list of text parts is the text that servers make of it, its lines joined; tool-call
    arguments are JSON values, where numbers compare by value (1 and 1.0 are equal); key order, `NOISE_KEYS` and keys
    that carry nothing do not count. Raises MessageError for a value that JSON cannot hold (NaN, a set).
    """
    message = Message.of(message)
    if _is_plain(message):
        return _plain_form(message).encode("utf-8", "surrogatepass")
    form: dict[str, Any] = {"role": message.role, "content": _canonical_content(message.content)}
    if match != "role_content":
        form["reasoning"] = message.reasoning_content or None
        form["name"] = message.name or None
        extra = pruned(message.extra)
        form["extra"] = _tagged(extra) if extra else None
    if match == "loose_tool_call":
        form["tool_calls"] = [call.name for call in message.tool_calls]
    if match == "strict":
        form["tool_calls"] = [_canonical_call(call) for call in message.tool_calls]
        form["tool_call_id"] = message.tool_call_id or None
    text = json.dumps({k: v for k, v in form.items() if v}, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    # Python keeps a lone surrogate (half of an emoji cut in two) in a str; it must still compare.
    return text.encode("utf-8", "surrogatepass")


def digest(message: object, match: Match = "strict") -> bytes:
    """16 bytes that stand for `canonical(message, match)` in the tree."""
    return hashlib.blake2b(canonical(message, match), digest_size=16).digest()


def value_digest(value: Any) -> bytes:
    """16 bytes that stand for any JSON value (tools, chat-template arguments); key order does not count.

    Asked for on every turn, of the same values mostly: equal values of plain types are digested once.
    """
    try:
        written = marshal.dumps(value, _MARSHAL_BY_VALUE)
    except ValueError:  # not of plain types alone
        return _value_digest(value)
    key = hashlib.blake2b(written, digest_size=16).digest()  # tools may be long: a thousand of them are not kept
    if (known := _VALUE_DIGESTS.get(key)) is None:
        known = _VALUE_DIGESTS[key] = _value_digest(value)
    return known


#: The newest version of the format in which one object twice is written twice.
_MARSHAL_BY_VALUE = 2
_VALUE_DIGESTS = Memo[bytes, bytes](1_024)


def _value_digest(value: Any) -> bytes:
    text = json.dumps(_tagged(plain_value(value)), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _is_plain(message: Message) -> bool:
    """Whether a message has a role and a text only, as most have."""
    more = message.tool_calls or message.reasoning_content or message.tool_call_id or message.name or message.extra
    return not more and not isinstance(message.content, tuple)


def _plain_form(message: Message) -> str:
    """What the general form would be, for a seventh of its time."""
    assert not isinstance(message.content, tuple)
    role = f'"role":{encode_basestring(message.role)}' if message.role else ""
    content = f'"content":{encode_basestring(message.content)}' if message.content else ""
    return "{" + content + ("," if content and role else "") + role + "}"


def _canonical_content(content: str | tuple[dict[str, Any], ...] | None) -> Any:
    if not isinstance(content, tuple):
        return content or None
    parts = [pruned(part) for part in content]
    if all(part.get("type", "text") == "text" and part.keys() <= {"type", "text"} for part in parts):
        return "\n".join(part["text"] for part in parts if "text" in part) or None
    return [_tagged(part) for part in parts]


def _canonical_call(call: ToolCall) -> dict[str, Any]:
    text = call.function.arguments
    try:
        # Numbers are kept as their text by the hooks: no precision is lost, however long they are.
        value = json.loads(text, parse_int=_Number, parse_float=_Number, parse_constant=_refuse) if text else None
        arguments = {"text": text} if _too_deep(text, value) else {"json": _tagged(value)}
    except (ValueError, RecursionError):
        arguments = {"text": text}
    return {"id": call.id, "type": call.type, "name": call.function.name, "arguments": arguments}


def _too_deep(text: str, value: Any) -> bool:
    """Whether a value is nested deeper than the door allows: how deep Python goes depends on who asks."""
    if text.count("[") + text.count("{") <= MOST_DEEP:
        return False
    layer: list[Any] = [value]
    for _ in range(MOST_DEEP):
        layer = [
            inner
            for item in layer
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return any(isinstance(item, dict | list) for item in layer)


class _Number(str):
    """A JSON number's text."""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _tagged(value: Any) -> Any:
    """A JSON value in which numbers cannot be mistaken for text and compare by value."""
    if isinstance(value, _Number):
        return {"n": _number(value)}
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return {"s": str(value)}
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise MessageError(f"{value} is not a JSON number")
        return {"n": _number(repr(value))}
    if isinstance(value, Mapping):
        return {"o": {key: _tagged(item) for key, item in value.items()}}
    return [_tagged(item) for item in value]


def _number(text: str) -> str:
    """The number's exact value as sign, digits and exponent: "1", "1.0" and "10e-1" all give "1e0"."""
    try:
        sign, digits, exponent = Decimal(text).as_tuple()
    except InvalidOperation:  # an exponent beyond what Decimal holds
        return text.lower()
    significant = "".join(map(str, digits)).lstrip("0")
    stripped = significant.rstrip("0")
    if not stripped:
        return "0"
    return f"{'-' if sign else ''}{stripped}e{int(exponent) + len(significant) - len(stripped)}"

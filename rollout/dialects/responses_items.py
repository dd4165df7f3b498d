"""Items of an OpenAI Responses request, each read as a message, or as a part of what the assistant said."""

from __future__ import annotations

from typing import Any

import msgspec

from rollout.chat.messages import Function, Message, ToolCall
from rollout.dialects.fields import decoded, unsupported
from rollout.dialects.memory import Known, Memory
from rollout.dialects.responses_tools import custom_arguments, flat_name
from rollout.dialects.types import DialectError

_TEXT_KIND = b"responses-text"


class Items:
    """Reads one request's items."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._place = "input"

    def text(self, raw: msgspec.Raw) -> Known:
        """Input that is a text alone: a user's message."""
        return self._memory.item(raw, _TEXT_KIND, self._decode_text)

    def _decode_text(self, raw: msgspec.Raw) -> Known:
        return self._memory.known([Message("user", decoded(raw, str, "input") or None)])

    def decode(self, raw: msgspec.Raw, place: str) -> Known:
        self._place = place
        item = decoded(raw, dict[str, Any], self._place)
        match item.get("type") or "message":
            case "message":
                return self._message(item)
            case "reasoning":
                return self._reasoning(item)
            case "function_call":
                name = flat_name(self._need(item, "name"), self._text(item, "namespace"))
                return self._call(item, name, self._text(item, "arguments"))
            case "custom_tool_call":
                name = flat_name(self._need(item, "name"), self._text(item, "namespace"))
                return self._call(item, name, custom_arguments(self._text(item, "input")))
            case "function_call_output" | "custom_tool_call_output":
                return self._output(item)
            case "item_reference":
                return self._reference(self._need(item, "id"))
            case kind:
                raise unsupported(f"{self._place}.type", f"items of type {kind!r}")

    def _message(self, item: dict[str, Any]) -> Known:
        role = item.get("role")
        if role not in ("system", "developer", "user", "assistant"):
            why = f"must be system, developer, user or assistant, not {role!r}"
            raise DialectError.of_field(f"{self._place}.role", why)
        message = Message(role, self._content(item.get("content"), "content"))
        if role != "assistant":
            return self._memory.known([message])
        return self._memory.known([message], said=True, keys=self._ids(item, "id"))

    def _reasoning(self, item: dict[str, Any]) -> Known:
        """Reasoning as text, where the item has it: its content, else its summary."""
        parts = item.get("content") or item.get("summary") or []
        if not isinstance(parts, list):
            raise DialectError.of_field(f"{self._place}.summary", "must be a list of parts")
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        text = "\n".join(each for each in texts if isinstance(each, str) and each)
        message = Message("assistant", None, text or None)
        return self._memory.known([message], said=True, keys=self._ids(item, "encrypted_content", "id"), begins=True)

    def _call(self, item: dict[str, Any], name: str, arguments: str) -> Known:
        call = ToolCall(function=Function(name, arguments), id=self._need(item, "call_id"))
        message = Message("assistant", tool_calls=(call,))
        return self._memory.known([message], said=True, keys=self._ids(item, "call_id", "id"))

    def _output(self, item: dict[str, Any]) -> Known:
        own = self._memory.own_call_id(self._need(item, "call_id"))
        return self._memory.known([Message("tool", self._content(item.get("output"), "output"), tool_call_id=own)])

    def _reference(self, identifier: str) -> Known:
        """An item that this session answered, by its id alone."""
        kind, _, rest = identifier.partition("_")
        answer = self._memory.answer(identifier) if kind in ("rs", "msg", "fc", "ctc") else None
        if answer is None:
            text = f"{self._place}.id: no item {identifier!r} is known here (any more); send the item itself"
            raise DialectError(404, text, code="item_not_found", param=f"{self._place}.id")
        match kind:
            case "rs":
                message = Message("assistant", None, answer.shown.reasoning_content)
            case "msg":
                message = Message("assistant", answer.shown.text or None)
            case _:
                at = int(rest.rpartition("_")[2])
                call = msgspec.structs.replace(answer.shown.tool_calls[at], id=answer.call_ids[at])
                message = Message("assistant", tool_calls=(call,))
        return self._memory.known([message], said=True, keys=(identifier,), begins=kind == "rs")

    def _content(self, content: Any, name: str) -> str | tuple[dict[str, Any], ...] | None:
        if content is None or isinstance(content, str):
            return content or None
        place = f"{self._place}.{name}"
        if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
            raise DialectError.of_field(place, "must be text or a list of parts")
        parts = [_part(part, f"{place}[{at}]") for at, part in enumerate(content)]
        if all(part["type"] == "text" for part in parts):
            return "\n".join(part["text"] for part in parts if part["text"]) or None
        return tuple(parts)

    def _ids(self, item: dict[str, Any], *names: str) -> tuple[str, ...]:
        return tuple(found for name in names if (found := self._text(item, name)))

    def _need(self, item: dict[str, Any], name: str) -> str:
        if not (found := self._text(item, name)):
            raise DialectError.of_field(f"{self._place}.{name}", "is required", "missing_required_parameter")
        return found

    def _text(self, item: dict[str, Any], name: str) -> str:
        """A field that is text; "" where it is absent."""
        value = item.get(name)
        if value is not None and not isinstance(value, str):
            raise DialectError.of_field(f"{self._place}.{name}", f"must be text, not {type(value).__name__}")
        return value or ""


def _part(part: dict[str, Any], place: str) -> dict[str, Any]:
    """A content part in the form of chat completions."""
    kind = part.get("type")
    match kind:
        case "input_text" | "output_text" | "text" | "refusal":
            text = part.get("refusal" if kind == "refusal" else "text")
            if not isinstance(text, str):
                raise DialectError.of_field(f"{place}.text", "must be text")
            return {"type": "text", "text": text}
        case "input_image" if isinstance(url := part.get("image_url"), str):
            detail = part.get("detail")
            asked = {"url": url} if detail in (None, "auto") else {"url": url, "detail": detail}
            return {"type": "image_url", "image_url": asked}
        case "input_audio" if isinstance(audio := part.get("input_audio"), dict):
            return {"type": "input_audio", "input_audio": audio}
        case "input_image":
            raise unsupported(place, "an image by anything but its image_url")
    raise unsupported(place, f"parts of type {kind!r}")

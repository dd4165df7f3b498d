"""What the tests of readers share: a tool, and a reader on a text."""

from __future__ import annotations

from typing import Any

from rollout.chat.messages import Message
from rollout.codec.readers import Reader, Sampled


def tool_of(name: str, properties: dict[str, Any] | None = None) -> dict[str, Any]:
    """A tool in OpenAI's form."""
    schema = {"type": "object", "properties": properties or {}}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": schema}}


ADD = tool_of("add", {"a": {"type": "integer"}})


def read(
    reader: Reader, text: str, *, tools: Any = (ADD,), prompt_end: str = "<|assistant|>", ended: bool = True
) -> Message:
    """What a reader makes of a text."""
    return reader.read(Sampled(text=text, prompt_end=prompt_end, tools=tools, ended=ended))


def calls_of(message: Message) -> list[tuple[str, dict[str, Any]]]:
    """The calls' names and arguments."""
    return [(call.name, call.parsed_arguments()) for call in message.tool_calls]


def reasons_of(message: Message) -> list[str]:
    """Why each malformed call could not be read."""
    return [call.reason for call in message.malformed_tool_calls]

"""Requests of the size of Claude Code's: 64 kB of tools, and a conversation in which tools are called turn by turn."""

from __future__ import annotations

import json
from typing import Any

#: As many tools as Claude Code has, of its size in all.
_TOOLS = 24
_TOOL_BYTES = 64_000

_MARK = {"type": "ephemeral"}


def tools() -> list[dict[str, Any]]:
    """64 kB of tools in Anthropic's form."""
    words = "Runs a command in a shell, and answers what it printed.\n" * 200
    each = _TOOL_BYTES // _TOOLS
    schema = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
    frame = len(json.dumps({"name": "tool00", "description": "", "input_schema": schema}))
    return [
        {"name": f"tool{at:02d}", "description": words[: each - frame - 48], "input_schema": schema}
        for at in range(_TOOLS)
    ]


def question(at: int, size: int = 900) -> str:
    """A text of about so many characters, no two the same."""
    line = f"{at:06d}: a line of the file that was read, as long as lines of code are in most files.\n"
    return (line * (size // len(line) + 1))[:size]


class ClaudeCode:
    """A conversation as Claude Code sends it: the whole of it each turn, the cache mark on its last message."""

    def __init__(self, model: str = "our-model") -> None:
        self._head = {
            "model": model,
            "max_tokens": 32_000,
            "stream": True,
            "system": [
                {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197; cch=00000;"},
                {"type": "text", "text": "You are Claude Code.", "cache_control": _MARK},
            ],
            "tools": tools(),
            "metadata": {"user_id": json.dumps({"session_id": "s"})},
        }
        self.messages: list[dict[str, Any]] = [_user({"type": "text", "text": question(0)})]

    def body(self) -> bytes:
        """The next request."""
        last = self.messages[-1]
        blocks = [*last["content"][:-1], {**last["content"][-1], "cache_control": _MARK}]
        messages = [*self.messages[:-1], {**last, "content": blocks}]
        return json.dumps({**self._head, "messages": messages}, ensure_ascii=False, separators=(",", ":")).encode()

    def answered(self, content: list[dict[str, Any]]) -> None:
        """Takes an answer's blocks as they came, and calls the tools that it asks for."""
        at = len(self.messages)
        results = [
            {"type": "tool_result", "tool_use_id": block["id"], "content": question(at)}
            for block in content
            if block["type"] == "tool_use"
        ]
        self.messages.append({"role": "assistant", "content": content})
        self.messages.append(_user(*results, *([] if results else [{"type": "text", "text": question(at)}])))


def _user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}

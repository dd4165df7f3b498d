"""A completion's text as a message: the embedded model writes reasoning and calls as Qwen3 does.

<think>
2 + 2 is 4
</think>

I look.
<tool_call>
{"name": "add", "arguments": {"a": 2}}
</tool_call>
"""

from __future__ import annotations

import json
import re

from rollout.chat.messages import Function, Message, ToolCall

_CALL = re.compile(r"\n?<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


def read_reply(text: str) -> Message:
    """The message; a call that is no object with a name and arguments stays in its text."""
    reasoning = None
    before, mark, behind = text.partition("</think>")
    if mark:
        reasoning, text = before.removeprefix("<think>").strip("\n") or None, behind.removeprefix("\n\n")
    calls = list[ToolCall]()

    def taken(block: re.Match[str]) -> str:
        call = _call(block[1])
        if call is None:
            return block[0]
        calls.append(call)
        return ""

    content = _CALL.sub(taken, text)
    return Message("assistant", content or None, reasoning, tuple(calls))


def _call(text: str) -> ToolCall | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    match found:
        case {"name": str(name), "arguments": dict(arguments)} if name:
            return ToolCall(function=Function(name, json.dumps(arguments, ensure_ascii=False)))
    return None

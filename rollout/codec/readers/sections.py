"""Calls between tokens of their own, all of a turn in one section.

deepseek   <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\\n```json\\n{"a": 1}\\n```
           <｜tool▁call▁end｜><｜tool▁calls▁end｜>: V3 and R1. V3.1 writes add<｜tool▁sep｜>{"a": 1}
kimi       <|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{"a": 1}
           <|tool_call_end|><|tool_calls_section_end|>
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rollout.chat.messages import ToolCall
from rollout.codec.readers.blocks import Block, Blocks
from rollout.codec.readers.pieces import Sampled
from rollout.codec.readers.reasoning import THINK, Tags
from rollout.codec.readers.values import (
    INVALID_JSON,
    MALFORMED,
    MISSING_NAME,
    NoCall,
    arguments_text,
    check_name,
    make_call,
    read_value,
    skip_space,
)

_FENCED = re.compile(r"function<｜tool▁sep｜>(?P<name>[^\n<]*)\n```(?:json)?\s*")
_PLAIN = re.compile(r"(?P<name>[^\n<]*)<｜tool▁sep｜>\s*")
_FENCE_END = re.compile(r"\s*```")
_KIMI = re.compile(r"(?P<id>[^<]*+)<\|tool_call_argument_begin\|>\s*+")
_KIMI_ID = re.compile(r"(?:functions\.)?(?P<name>.*?)(?::\d+)?", re.DOTALL)


class DeepSeek(Blocks):
    """DeepSeek's calls, of both kinds."""

    def calls_in(self, text: str, at: int, block: Block, sampled: Sampled) -> tuple[Sequence[ToolCall], int]:
        """See `Blocks`."""
        fenced = _FENCED.match(text, at)
        head = fenced or _PLAIN.match(text, at)
        if head is None:
            raise NoCall(MALFORMED)
        written, end = object_at(text, head.end())
        if fenced is not None:
            closed = _FENCE_END.match(text, end)
            if closed is None:
                raise NoCall(INVALID_JSON)
            end = closed.end()
        name = head["name"].strip()
        check_name(name, sampled.tools)
        return [make_call(name, written)], end


class Kimi(Blocks):
    """Kimi K2's calls, whose ids hold the function's name and the call's number."""

    def calls_in(self, text: str, at: int, block: Block, sampled: Sampled) -> tuple[Sequence[ToolCall], int]:
        """See `Blocks`."""
        head = _KIMI.match(text, at)
        if head is None:
            raise NoCall(MALFORMED)
        written, end = object_at(text, head.end())
        written_id = head["id"].strip()
        name = _KIMI_ID.fullmatch(written_id)
        if name is None or not name["name"]:
            raise NoCall(MISSING_NAME)
        check_name(name["name"], sampled.tools)
        return [make_call(name["name"], written, written_id)], end


def object_at(text: str, at: int) -> tuple[str, int]:
    """The text of the JSON object that begins at `at`, and where it ends. Raises NoCall."""
    value, end = read_value(text, skip_space(text, at))
    return arguments_text(value, text[skip_space(text, at) : end]), end


DEEPSEEK = DeepSeek(
    "deepseek",
    Block("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
    fences=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    gap=2,
)
KIMI = Kimi(
    "kimi",
    Block("<|tool_call_begin|>", "<|tool_call_end|>"),
    fences=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    tags=(THINK, Tags("◁think▷", "◁/think▷")),
)

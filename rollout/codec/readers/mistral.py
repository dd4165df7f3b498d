"""Mistral's calls, in the formats of its tokenizers.

    up to v7     [TOOL_CALLS][{"name": "add", "arguments": {"a": 1}, "id": "abcdefghi"}, ...]
    from v11     [TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]add[ARGS]{"a": 2}, and v11's [CALL_ID]abcdefghi before [ARGS]

Magistral reasons between [THINK] and [/THINK].
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rollout.chat.messages import ToolCall
from rollout.codec.readers.blocks import Block, Blocks, calls_in_array
from rollout.codec.readers.pieces import Sampled
from rollout.codec.readers.reasoning import THINK, Tags
from rollout.codec.readers.sections import object_at
from rollout.codec.readers.values import MALFORMED, NoCall, make_call, skip_space

_HEAD = re.compile(r"(?P<name>[^\s\[\]{}\"]+)\s*(?:\[CALL_ID\](?P<id>[^\s\[\]{}]+))?\s*(?:\[ARGS\])?\s*")


class Mistral(Blocks):
    """Mistral's calls."""

    def calls_in(self, text: str, at: int, block: Block, sampled: Sampled) -> tuple[Sequence[ToolCall], int]:
        """See `Blocks`."""
        at = skip_space(text, at)
        if text.startswith("[", at) and not text.startswith("[ARGS]", at):
            return calls_in_array(text, at)
        head = _HEAD.match(text, at)
        if head is None:
            raise NoCall(MALFORMED)
        written, end = object_at(text, head.end())
        return [make_call(head["name"], written, head["id"])], end


MISTRAL = Mistral("mistral", Block("[TOOL_CALLS]"), tags=(Tags("[THINK]", "[/THINK]"), THINK))

"""Calls between tags, each a JSON object, and formats that differ from that in the tags alone.

hermes   <tool_call>\\n{"name": "add", "arguments": {"a": 1}}\\n</tool_call>   Qwen2.5, Qwen3, Hermes
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rollout.chat.messages import ToolCall
from rollout.codec.readers.base import Format, Piece, Sampled
from rollout.codec.readers.reasoning import THINK, Tags, split_reasoning
from rollout.codec.readers.values import UNCLOSED, NoCall, json_call, read_members, skip_space


class TaggedCalls(Format):
    """Calls between an opening and a closing tag: what stands in one is for `inner` to read."""

    def __init__(self, name: str, opener: str, closer: str, *, gap: int = 1, tags: Sequence[Tags] = (THINK,)) -> None:
        self.name = name
        self.opener, self.closer = opener, closer
        self.openers = (opener,)
        self.gap = gap
        self.tags = tags

    def pieces(self, sampled: Sampled) -> Iterator[Piece]:
        """See `Format`."""
        reasoning, text = split_reasoning(sampled, self.tags, self.openers)
        yield from reasoning
        at = 0
        while (start := text.find(self.opener, at)) >= 0:
            if start > at:
                yield Piece("text", text[at:start])
            piece = self._block(text, start)
            yield piece
            at = start + len(piece.raw)
        if at < len(text):
            yield Piece("text", text[at:])

    def _block(self, text: str, start: int) -> Piece:
        """The block whose opener stands at `start`."""
        inside = start + len(self.opener)
        end = self.end(text, inside)
        if end is None:
            # The next opener begins another attempt.
            following = text.find(self.opener, inside)
            return Piece("broken", text[start : following if following >= 0 else len(text)], reason=UNCLOSED)
        raw = text[start : end + len(self.closer)]
        try:
            return Piece("call", raw, self.call(text[inside:end]))
        except NoCall as error:
            return Piece("broken", raw, reason=str(error))

    def end(self, text: str, inside: int) -> int | None:
        """Where the closing tag of a block stands that begins at `inside`; None where it is not closed.

        An opening tag before it begins another block.
        """
        found = text.find(self.closer, inside)
        return found if found >= 0 and text.find(self.opener, inside, found) < 0 else None

    def call(self, inner: str) -> ToolCall:
        """The call that a block holds. Raises NoCall."""
        raise NotImplementedError


class JsonCalls(TaggedCalls):
    """Calls between tags, each a JSON object."""

    def end(self, text: str, inside: int) -> int | None:
        """See `TaggedCalls`: a closing tag within a text of the call's is that text."""
        try:
            _, after = read_members(text, skip_space(text, inside))
        except NoCall:
            return super().end(text, inside)
        after = skip_space(text, after)
        return after if text.startswith(self.closer, after) else super().end(text, inside)

    def call(self, inner: str) -> ToolCall:
        """See `TaggedCalls`."""
        return json_call(inner)


HERMES = JsonCalls("hermes", "<tool_call>", "</tool_call>")

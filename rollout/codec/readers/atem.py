"""Muse's turns: messages with a recipient, and calls as tags in those to a tool.

    ` to=self<|message|>I add.<|eom|><|start|>assistant to=add<|message|><atem:function_calls>\\n
    <atem:invoke name="add">\\n<atem:parameter name="a">1</atem:parameter>\\n</atem:invoke>\\n
    </atem:function_calls><|eot|>`

What is said to `self` is reasoning, and to `user` the answer. The prompt ends with `<|start|>assistant`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rollout.codec.readers.base import Format
from rollout.codec.readers.blocks import Block
from rollout.codec.readers.pieces import Kind, Piece, Sampled
from rollout.codec.readers.xml import Markup, Xml

#: Nothing is tried twice (`*+`): a model that writes spaces without end would be read for as long.
_HEADER = re.compile(r"\s*+(?:<\|start\|>\s*+assistant)?+\s*+(?:to=(?P<to>[^\s<]++))?+\s*+<\|message\|>")
_END = re.compile(r"<\|eo[mt]\|>|(?=<\|start\|>)|\Z")
_START = "<|start|>"

_BLOCK = Block("<atem:function_calls>", "</atem:function_calls>")
_CALLS = Xml(
    "atem",
    _BLOCK,
    markup=Markup(
        call=r'<atem:invoke name="(?P<name>[^"\n]+)">',
        call_end=r"</atem:invoke>",
        parameter=r'<atem:parameter name="(?P<key>[^"\n]+)">',
        parameter_end=r"</atem:parameter>",
        several=True,
    ),
)


class Atem(Format):
    """Muse's turns."""

    name = "atem"
    openers = (_BLOCK.open,)
    signs = (_BLOCK.open,)
    tags = ()

    def said(self, text: str, sampled: Sampled) -> Iterator[Piece]:
        """See `Format`."""
        at = 0
        while at < len(text):
            header = _HEADER.match(text, at)
            if header is None:
                following = text.find(_START, at + 1)
                end = following if following >= 0 else len(text)
                yield from _CALLS.said(text[at:end], sampled)
                at = end
                continue
            ended = _END.search(text, header.end())
            assert ended is not None, "the end of the text matches"
            yield from self._message(header, text[header.end() : ended.start()], ended[0], sampled)
            at = ended.end()

    def _message(self, header: re.Match[str], body: str, end: str, sampled: Sampled) -> Iterator[Piece]:
        """One message's pieces."""
        recipient = header["to"] or "user"
        syntax: Kind = "mark" if recipient in ("self", "user") else "fence"
        said = [Piece("reasoning", body)] if recipient == "self" else _CALLS.said(body, sampled)
        yield from [piece for piece in (Piece(syntax, header[0]), *said, Piece(syntax, end)) if piece.raw]


ATEM = Atem()

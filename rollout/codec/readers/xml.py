"""Calls as tags, a tag for each argument, the values without quotes.

    qwen-xml     <tool_call>\\n<function=add>\\n<parameter=a>\\n1\\n</parameter>\\n</function>\\n</tool_call>
    seed         the same between <seed:tool_call> tags
    glm          <tool_call>add\\n<arg_key>a</arg_key>\\n<arg_value>1</arg_value>\\n</tool_call>
    hy3          the same with `:opensource` in each tag, a <tool_sep> behind the name, and <tool_calls> around all
    minimax      <minimax:tool_call>\\n<invoke name="add">\\n<parameter name="a">1</parameter>\\n</invoke>\\n
                 </minimax:tool_call>
    dsml         <｜DSML｜tool_calls>\\n<｜DSML｜invoke name="add">\\n<｜DSML｜parameter name="a" string="false">1
                 </｜DSML｜parameter>\\n</｜DSML｜invoke>\\n</｜DSML｜tool_calls>          DeepSeek V3.2 and V4

Templates of Qwen's write one newline on each side of a value, the others none: nothing else is taken off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from rollout.chat.messages import ToolCall
from rollout.codec.readers.blocks import Block, Blocks
from rollout.codec.readers.literals import after_space
from rollout.codec.readers.pieces import Piece, Sampled
from rollout.codec.readers.reasoning import THINK, Tags
from rollout.codec.readers.schema import parameters_of, read_argument
from rollout.codec.readers.values import (
    INVALID_JSON,
    MALFORMED,
    NoCall,
    arguments_text,
    check_name,
    make_call,
    read_spelled,
)


class Markup(msgspec.Struct, frozen=True, kw_only=True):
    """What a format's calls are made of, as regular expressions.

    None may try a text twice (`++` and `*+`, or what begins once a word): a policy that degenerates writes thousands of
    spaces, or of a call's first words.
    """

    call: str
    """What begins a call; its name in group `name`."""
    call_end: str
    parameter: str
    """What begins an argument: its name in group `key`; in group `string`, where there is one, whether it is text."""
    parameter_end: str
    newlines: bool = False
    """Whether a newline on each side of a value is the template's."""
    several: bool = False
    """Whether a block may hold several calls."""
    unmistakable: bool = True
    """Whether what begins a call is one without the block's tags, too: models forget these at times."""


class Xml(Blocks):
    """Calls as tags."""

    def __init__(
        self,
        name: str,
        *blocks: Block,
        markup: Markup,
        gap: int = 1,
        tags: Sequence[Tags] = (THINK,),
        signs: Sequence[str | tuple[str, ...]] = (),
        fences: Sequence[str] = (),
    ) -> None:
        super().__init__(name, *blocks, gap=gap, tags=tags, signs=signs, fences=fences)
        self.markup = markup
        self._call, self._parameter = re.compile(markup.call), re.compile(markup.parameter)
        self._call_end = re.compile(markup.call_end)
        # What ends a value is followed by another argument or the call's end: else it is part of the value.
        follows = re.sub(r"\(\?P<\w+>", "(?:", f"{markup.parameter}|{markup.call_end}")
        self._value_end = re.compile(rf"{markup.parameter_end}(?=\s*(?:{follows}))")
        begins = re.sub(r"\(\?P<\w+>", "(?:", markup.call)
        closes = "|".join(re.escape(block.close) for block in blocks)
        forgotten = rf"{begins}[\s\S]*?(?:{markup.call_end}(?:\s*(?:{closes}))?|\Z)"
        self._forgotten = re.compile(forgotten if markup.unmistakable else r"(?!)")

    def said(self, text: str, sampled: Sampled) -> Iterator[Piece]:
        """See `Format`. A call without the tags around it is an attempt, too."""
        for piece in super().said(text, sampled):
            if piece.kind != "text":
                yield piece
                continue
            at = 0
            for found in self._forgotten.finditer(piece.raw):
                yield from [Piece("text", piece.raw[at : found.start()])] if found.start() > at else []
                yield Piece("broken", found[0], reason=MALFORMED)
                at = found.end()
            yield from [Piece("text", piece.raw[at:])] if at < len(piece.raw) else []

    def calls_in(self, text: str, at: int, block: Block, sampled: Sampled) -> tuple[Sequence[ToolCall], int]:
        """See `Blocks`."""
        calls: list[ToolCall] = []
        at = after_space(text, at)
        while (begun := self._call.match(text, at)) is not None and (self.markup.several or not calls):
            found, at = self._read(text, begun.end(), begun["name"].strip(), sampled)
            calls.append(found)
            at = after_space(text, at)
        if not calls:
            raise NoCall(MALFORMED)
        if block.close and not text.startswith(block.close, at):
            raise NoCall(MALFORMED)
        return calls, at

    def _read(self, text: str, at: int, name: str, sampled: Sampled) -> tuple[ToolCall, int]:
        """The call whose arguments begin at `at`, and where it ends. Raises NoCall."""
        check_name(name, sampled.tools)
        schema = parameters_of(sampled.tools, name)
        arguments: dict[str, Any] = {}
        at = after_space(text, at)
        while (begun := self._parameter.match(text, at)) is not None:
            key, start = begun["key"].strip(), begun.end()
            ended = self._value_end.search(text, start)
            if ended is None or key in arguments:
                raise NoCall(MALFORMED)
            value = text[start : ended.start()]
            if self.markup.newlines:
                value = value.removeprefix("\n").removesuffix("\n")
            string = begun.groupdict().get("string")
            arguments[key] = read_argument(value, schema, key) if string is None else _flagged(value, string)
            at = after_space(text, ended.end())
        ended = self._call_end.match(text, at)
        if ended is None:
            raise NoCall(MALFORMED)
        return make_call(name, arguments_text(arguments)), ended.end()


def _flagged(text: str, string: str) -> Any:
    """A value that says itself whether it is text. Raises NoCall."""
    if string == "true":
        return text
    value, end = read_spelled(text, after_space(text, 0))
    if after_space(text, end) != len(text):
        raise NoCall(INVALID_JSON)
    return value


_FUNCTION = Markup(
    call=r"<function=(?P<name>[^<>\n]++)>",
    call_end=r"</function>",
    parameter=r"<parameter=(?P<key>[^<>\n]++)>",
    parameter_end=r"</parameter>",
    newlines=True,
)

QWEN_XML = Xml("qwen-xml", Block("<tool_call>", "</tool_call>"), markup=_FUNCTION, gap=2, signs=("<function=",))
SEED = Xml(
    "seed",
    Block("<seed:tool_call>", "</seed:tool_call>"),
    markup=msgspec.structs.replace(_FUNCTION, newlines=False, several=True),
    tags=(Tags("<seed:think>", "</seed:think>"), THINK),
)
GLM = Xml(
    "glm",
    Block("<tool_call>", "</tool_call>"),
    markup=Markup(
        unmistakable=False,
        call=r"(?P<name>[^<\n]++)\s*+(?=<arg_key>|</tool_call>)",
        call_end=r"(?=</tool_call>)",
        parameter=r"<arg_key>(?P<key>[^<]+)</arg_key>\s*<arg_value>",
        parameter_end=r"</arg_value>",
    ),
    signs=("<arg_key>",),
)
HY3 = Xml(
    "hy3",
    Block("<tool_call:opensource>", "</tool_call:opensource>"),
    markup=Markup(
        call=r"(?<![^<>\s])(?P<name>[^<>\s]++)\s*+<tool_sep:opensource>",
        call_end=r"(?=</tool_call:opensource>)",
        parameter=r"<arg_key:opensource>(?P<key>[^<]+)</arg_key:opensource>\s*<arg_value:opensource>",
        parameter_end=r"</arg_value:opensource>",
    ),
    tags=(Tags("<think:opensource>", "</think:opensource>"),),
    fences=("<tool_calls:opensource>", "</tool_calls:opensource>"),
)
MINIMAX = Xml(
    "minimax",
    Block("<minimax:tool_call>", "</minimax:tool_call>"),
    markup=Markup(
        call=r'<invoke name="(?P<name>[^"\n]+)">',
        call_end=r"</invoke>",
        parameter=r'<parameter name="(?P<key>[^"\n]+)">',
        parameter_end=r"</parameter>",
        several=True,
    ),
)
DSML = Xml(
    "dsml",
    Block("<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>"),
    Block("<｜DSML｜function_calls>", "</｜DSML｜function_calls>"),
    markup=Markup(
        call=r'<｜DSML｜invoke name="(?P<name>[^"\n]+)">',
        call_end=r"</｜DSML｜invoke>",
        parameter=r'<｜DSML｜parameter name="(?P<key>[^"\n]+)" string="(?P<string>true|false)">',
        parameter_end=r"</｜DSML｜parameter>",
        several=True,
    ),
    gap=2,
    signs=("｜DSML｜",),
)

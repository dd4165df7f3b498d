"""What a chat template's source says of itself: which strings it looks for in messages, and whether it takes parts.

A template can only find in a text what it names (`'/no_think' in message.content`), so a text without any of these
strings is to it like any other. Whether content reaches it as text or as a list of parts is a server's choice; vLLM
makes it by whether the template has a loop over a message's content.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from jinja2 import Environment, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

#: Keys of messages and tools, and roles: templates ask whether a message has one, or is of it, not whether a text
#: holds it.
_KEYS = frozenset(
    [
        *("role", "content", "name", "type", "text", "tool", "tools", "tool_calls", "tool_call_id", "tool_call", "id"),
        *("function", "functions", "arguments", "parameters", "reasoning", "reasoning_content", "thinking", "system"),
        *("developer", "user", "assistant", "model", "ipython", "image", "image_url", "video", "audio", "object"),
        *("description", "properties", "required", "items", "enum", "string"),
    ]
)

#: Methods and filters of text whose arguments are looked for in it.
_LOOKS = frozenset(
    [
        "startswith",
        "endswith",
        "split",
        "rsplit",
        "partition",
        "rpartition",
        "find",
        "rfind",
        "index",
        "count",
        "replace",
    ]
)

#: Texts in which a template finds more than this are each by themselves.
_FOUND_AT_MOST = 16

_CASES = frozenset({"lower", "upper", "title", "capitalize", "casefold", "swapcase"})


class Source(msgspec.Struct, frozen=True):
    """What was read of a template."""

    takes_parts: bool = False
    """Whether content reaches it as a list of parts; else as text."""
    knows_developer: bool = False
    """Whether it names that role. Servers make it `system` where it does not."""
    sought: tuple[str, ...] | None = None
    """Strings that it may look for in texts; None where it could not be read."""
    folds: bool = False
    """Whether it changes texts' case, and may look for them in either."""

    def may_find(self, text: str) -> bool:
        """Whether the template may find in a text what it looks for."""
        if self.sought is None:
            return True
        return any(map((text.lower() if self.folds else text).__contains__, self.sought))

    def finds(self, text: str) -> object:
        """What the template may find in a text: equal where it finds the same strings in the same order.

        And where the same stands before, between and behind them: nothing, space, or words. Templates cut texts there,
        strip the pieces, and ask which are empty. False where it finds nothing; True where that cannot be told.
        """
        if self.sought is None or not self.may_find(text):
            return self.sought is None
        pieces = _pattern(self.sought).split(text.lower() if self.folds else text)
        if len(pieces) > 2 * _FOUND_AT_MOST:
            return True
        return tuple(piece if at % 2 else (bool(piece), bool(piece.strip())) for at, piece in enumerate(pieces))


def any_of(sources: Sequence[Source]) -> Source:
    """What any of several templates may look for: transformers chooses one by whether there are tools."""
    folds = any(source.folds for source in sources)
    sought = {text for source in sources for text in source.sought or ()}
    return Source(
        sought=None
        if any(source.sought is None for source in sources)
        else tuple(sorted({text.lower() for text in sought} if folds else sought)),
        folds=folds,
    )


@functools.lru_cache(maxsize=32)
def _pattern(sought: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"({'|'.join(map(re.escape, sorted(sought, key=len, reverse=True)))})")


def template_source(tokenizer: Any, *, tools: bool = False) -> Source:
    """What the template says that a tokenizer uses, with tools or without."""
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name, as transformers chooses among them
        template = template.get("tool_use" if tools and "tool_use" in template else "default")
    return read_source(template) if isinstance(template, str) else Source()


@functools.lru_cache(maxsize=32)
def read_source(template: str) -> Source:
    """Reads a template's source. One that is no Jinja says nothing of itself."""
    knows_developer = "'developer'" in template or '"developer"' in template
    try:
        tree = Environment(extensions=[loopcontrols, _Generation]).parse(template)  # nothing is rendered
    except Exception:  # Jinja's errors, and RecursionError
        return Source(knows_developer=knows_developer)
    sought = {text for text in _sought(tree) if len(text) > 1 and not text.isspace() and text not in _KEYS}
    folds = any(node.name in _CASES for node in tree.find_all(nodes.Filter)) or any(
        node.attr in _CASES for node in tree.find_all(nodes.Getattr)
    )
    return Source(
        takes_parts=_takes_parts(tree),
        knows_developer=knows_developer,
        sought=tuple(sorted({text.lower() for text in sought} if folds else sought)),
        folds=folds,
    )


class _Generation(Extension):
    """transformers' `{% generation %}`: what it encloses, as it is."""

    tags = {"generation"}  # Jinja's own way

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """See `jinja2.ext.Extension`."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _sought(tree: nodes.Node) -> Iterator[str]:
    for node in tree.find_all(
        (nodes.Compare, nodes.Call, nodes.Filter, nodes.Test, nodes.Assign, nodes.List, nodes.Tuple)
    ):
        yield from _texts(_looked_for(node))


def _looked_for(node: nodes.Node) -> list[nodes.Node]:
    """What of a node may be looked for in a text."""
    if isinstance(node, nodes.Compare):
        return [node.expr, *(operand.expr for operand in node.ops)]
    if isinstance(node, nodes.Call):
        by_name = isinstance(node.node, nodes.Getattr) and node.node.attr in _LOOKS
        return [*node.args] if by_name else []
    if isinstance(node, nodes.Filter | nodes.Test):
        return [*node.args] if isinstance(node, nodes.Test) or node.name in _LOOKS else []
    if isinstance(node, nodes.Assign):
        return [node.node]
    return [*node.items] if isinstance(node, nodes.List | nodes.Tuple) else []


def _texts(found: list[nodes.Node]) -> Iterator[str]:
    for node in found:
        if isinstance(node, nodes.Const) and isinstance(node.value, str):
            yield node.value


def _takes_parts(tree: nodes.Template) -> bool:
    """Whether the template has a loop over a message's content, itself or in a macro that is handed it."""
    messages = _aliases(tree, "messages")
    message = {
        loop.target.name
        for loop in tree.find_all(nodes.For)
        if isinstance(loop.target, nodes.Name) and _name(loop.iter) in messages
    }
    in_macros: dict[int, set[str]] = {}
    for macro in tree.find_all(nodes.Macro):
        fed = {name for call in tree.find_all(nodes.Call) for name in _fed(macro, call, message)}
        in_macros |= {id(loop): fed for loop in macro.find_all(nodes.For)}
    return any(
        _is_content(loop.iter, message)
        or (isinstance(loop.iter, nodes.Name) and loop.iter.name in in_macros.get(id(loop), {"content"}))
        for loop in tree.find_all(nodes.For)
    )


def _aliases(tree: nodes.Template, name: str) -> set[str]:
    """The names that are given what `name` has, or a part of it."""
    names, before = {name}, set[str]()
    while names != before:
        before = set(names)
        names |= {
            assign.target.name
            for assign in tree.find_all(nodes.Assign)
            if isinstance(assign.target, nodes.Name) and _name(assign.node) in before
        }
    return names


def _fed(macro: nodes.Macro, call: nodes.Call, message: set[str]) -> Iterator[str]:
    """The parameters of a macro that a call hands a message's content."""
    if not isinstance(call.node, nodes.Name) or call.node.name != macro.name:
        return
    for parameter, value in zip(macro.args, call.args, strict=False):
        if _is_content(value, message):
            yield parameter.name
    for keyword in call.kwargs:
        if isinstance(keyword, nodes.Keyword) and _is_content(keyword.value, message):
            yield keyword.key


def _is_content(node: nodes.Node | None, message: set[str]) -> bool:
    node = _bare(node)
    if isinstance(node, nodes.Getattr):
        return node.attr == "content" and _name(node.node) in message
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return node.arg.value == "content" and _name(node.node) in message
    return False


def _name(node: nodes.Node | None) -> str | None:
    node = _bare(node)
    return node.name if isinstance(node, nodes.Name) and node.ctx == "load" else None


def _bare(node: nodes.Node | None) -> nodes.Node | None:
    """Without filters, tests and slices around it."""
    while True:
        if isinstance(node, nodes.Filter | nodes.Test) or (
            isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        ):
            node = node.node
        else:
            return node

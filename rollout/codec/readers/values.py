"""Calls written as JSON: `{"name": "add", "arguments": {"a": 1}}`.

The text of the arguments is kept as the model wrote it: the order of keys, the spelling of numbers, escapes. Where
arguments are not written as JSON the text is made here, of values whose numbers keep theirs. What no
JSON reader takes is no call: NaN, numbers of thousands of digits, values nested beyond any use, one key twice. Nor is
what is no call's form: a key that nobody reads, arguments that are no object, a name that is no text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]  # typeshed leaves it out
from typing import Any, Self

import msgspec

from rollout.chat.messages import Function, ToolCall
from rollout.door import MOST_DEEP, is_plain, plain, well_formed

INVALID_JSON = "invalid_json"
UNCLOSED = "unclosed_block"
MISSING_NAME = "missing_name"
MALFORMED = "malformed_structure"

_SPACE = " \t\n\r"

#: What no function's name has in it.
_NO_NAME = re.compile(r"[\s\"'`{}()\[\]<>]")


class NoCall(ValueError):
    """What was tried cannot be read as a call; its text is the reason."""


class Keys(msgspec.Struct, frozen=True):
    """Under which keys a format's calls have what."""

    name: tuple[str, ...] = ("name",)
    arguments: tuple[str, ...] = ("arguments", "parameters")
    others: tuple[str, ...] = ("id",)
    """The call's id. A `type`, which is `function`, may be there always."""


PLAIN_KEYS = Keys()


class Member(msgspec.Struct, frozen=True, gc=False):
    """A value in a JSON object, and its text."""

    value: Any
    raw: str


class Spelled(float):
    """A number with its text in JSON: as a float alone it would come back with other digits than were written."""

    __slots__ = ("raw",)
    raw: str

    def __new__(cls, raw: str) -> Self:
        """Raises NoCall for a number beyond what a float holds, as JSON's readers would make an infinity of it."""
        found = super().__new__(cls, raw)
        if not math.isfinite(found):
            raise NoCall(INVALID_JSON)
        found.raw = raw
        return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise NoCall(MALFORMED)
    return out


def _no_constant(name: str) -> Any:
    raise NoCall(INVALID_JSON)  # NaN and the infinities, which JSON does not have


def _integer(text: str) -> int | Spelled:
    return Spelled(text) if text == "-0" else int(text)


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)
_SPELLING = json.JSONDecoder(
    object_pairs_hook=_once, parse_constant=_no_constant, parse_float=Spelled, parse_int=_integer
)
_encode = json.JSONEncoder(ensure_ascii=False).encode


def skip_space(text: str, at: int) -> int:
    """The place of what follows JSON's whitespace."""
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def read_value(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that starts at `at`, and where it ends. Raises NoCall."""
    return _decoded(_DECODER, text, at)


def read_spelled(text: str, at: int) -> tuple[Any, int]:
    """The same, with numbers that keep their text."""
    return _decoded(_SPELLING, text, at)


def _decoded(decoder: json.JSONDecoder, text: str, at: int) -> tuple[Any, int]:
    try:
        value, end = decoder.raw_decode(text, at)
    except NoCall:
        raise
    except (ValueError, RecursionError) as error:
        raise NoCall(INVALID_JSON) from error
    return value, end


def read_members(text: str, at: int) -> tuple[dict[str, Member], int]:
    """The members of the JSON object that starts at `at`, each with its text, and where it ends. Raises NoCall."""
    members: dict[str, Member] = {}
    if not text.startswith("{", at):
        raise NoCall(INVALID_JSON)
    at = skip_space(text, at + 1)
    if text.startswith("}", at):
        return members, at + 1
    while True:
        if not text.startswith('"', at):
            raise NoCall(INVALID_JSON)
        try:
            key, at = scanstring(text, at + 1)
        except ValueError as error:
            raise NoCall(INVALID_JSON) from error
        at = skip_space(text, at)
        if not text.startswith(":", at):
            raise NoCall(INVALID_JSON)
        start = skip_space(text, at + 1)
        value, at = read_value(text, start)
        if key in members:
            raise NoCall(MALFORMED)
        members[key] = Member(value, text[start:at])
        at = skip_space(text, at)
        if text.startswith("}", at):
            return members, at + 1
        if not text.startswith(",", at):
            raise NoCall(INVALID_JSON)
        at = skip_space(text, at + 1)


def call_of(members: Mapping[str, Member], keys: Keys = PLAIN_KEYS) -> ToolCall:
    """The call that an object is. Raises NoCall."""
    names, given = [key for key in keys.name if key in members], [key for key in keys.arguments if key in members]
    name = members[names[0]].value if len(names) == 1 else None
    if len(names) > 1 or len(given) > 1 or members.keys() - {*keys.name, *keys.arguments, *keys.others, "type"}:
        raise NoCall(MALFORMED)
    if not isinstance(name, str):
        raise NoCall(MISSING_NAME)
    if "type" in members and members["type"].value != "function":
        raise NoCall(MALFORMED)
    call_id = next((members[key].value for key in keys.others if key in members), None)
    if not isinstance(call_id, str | None):
        raise NoCall(MALFORMED)
    written = members[given[0]] if given else None
    text = arguments_text(written.value, written.raw) if written is not None and written.value is not None else "{}"
    return make_call(name, text, call_id)


def make_call(name: str, arguments: str, call_id: str | None = None) -> ToolCall:
    """A call with arguments as JSON text. Raises NoCall for a call without a name."""
    if not name:
        raise NoCall(MISSING_NAME)
    return ToolCall(function=Function(well_formed(name), arguments), id=well_formed(call_id) if call_id else None)


def check_name(name: str, tools: Any) -> None:
    """Raises NoCall where what stands in a name's place, without quotes, is none: JSON, or a sentence."""
    if _NO_NAME.search(name) and name not in declared_names(tools):
        raise NoCall(MALFORMED)


def arguments_text(value: Any, raw: str | None = None) -> str:
    """An object of arguments as JSON text: as it was written, where that can be sent on. Raises NoCall."""
    if not isinstance(value, dict):
        raise NoCall(MALFORMED)
    if raw is not None and is_plain(value):
        return raw
    try:
        return _text_of(value if raw is None else read_spelled(raw, 0)[0], 0)
    except ValueError as error:  # an infinity, or nested deeper than anyone reads
        raise NoCall(INVALID_JSON) from error


def _text_of(value: Any, depth: int) -> str:
    """A value as JSON. Raises ValueError where it cannot be written."""
    if isinstance(value, Spelled):
        return value.raw
    if not isinstance(value, dict | list):
        return _encode(plain(value))
    if depth > MOST_DEEP:
        raise NoCall(INVALID_JSON)
    if isinstance(value, list):
        return f"[{', '.join([_text_of(item, depth + 1) for item in value])}]"
    members = {_encode(plain(str(key))): item for key, item in value.items()}
    return f"{{{', '.join([f'{key}: {_text_of(item, depth + 1)}' for key, item in members.items()])}}}"


def json_arguments(text: str) -> str:
    """The text of a JSON object that is all of a text, but for whitespace around it. Raises NoCall."""
    start = skip_space(text, 0)
    if start == len(text):
        raise NoCall(INVALID_JSON)
    value, end = read_value(text, start)
    if skip_space(text, end) != len(text):
        raise NoCall(INVALID_JSON)
    return arguments_text(value, text[start:end])


def declared_names(tools: Any) -> Iterator[str]:
    """The names of the tools that were offered."""
    for tool in tools:
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str):
            yield name

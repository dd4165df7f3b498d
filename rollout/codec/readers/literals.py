"""Python's literals and calls, as models write them: `[add(a=1, b="x"), ping()]`.

Read here and not by Python's own parser, which warns of odd escapes, gives up on deep nesting in several ways, and does
not say where a call ends when text follows. JSON's `true`, `false` and `null` are read as well.
"""

from __future__ import annotations

import re
from typing import Any

from rollout.codec.readers.values import INVALID_JSON, MALFORMED, NoCall, Spelled
from rollout.door import MOST_DEEP, is_well_formed

#: A model's own spelling of true, false and none: Python's, or JSON's.
CONSTANTS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
#: Tools and their parameters may have a dash in their names, which Python's have not.
_NAME = re.compile(r"[^\W\d][\w.-]*")
_NUMBER = re.compile(r"[-+]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?", re.ASCII)
_SPACE = re.compile(r"\s*")
_QUOTES = ('"""', "'''", '"', "'")
_ESCAPE = re.compile(r"\\(\n|[0-7]{1,3}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[\s\S])")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "\n": ""}
_ESCAPES |= {"a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def after_space(text: str, at: int) -> int:
    """Where whitespace that begins at `at` ends."""
    match = _SPACE.match(text, at)
    return match.end() if match else at


def read_call(text: str, at: int) -> tuple[str, dict[str, Any], int]:
    """A call's name and arguments, and where it ends. Raises NoCall."""
    name = _NAME.match(text, at)
    if name is None or not text.startswith("(", name.end()):
        raise NoCall(MALFORMED)
    arguments: dict[str, Any] = {}
    at = after_space(text, name.end() + 1)
    while not text.startswith(")", at):
        key = _NAME.match(text, at)
        equals = after_space(text, key.end()) if key is not None else at
        if key is None or not text.startswith("=", equals) or key[0] in arguments:
            raise NoCall(MALFORMED)  # a call without the arguments' names, or with one twice
        arguments[key[0]], at = read_literal(text, after_space(text, equals + 1))
        at = next_item(text, at, ")")
    return name[0], arguments, at + 1


def read_literal(text: str, at: int, depth: int = 0) -> tuple[Any, int]:
    """The literal that begins at `at`, and where it ends. Raises NoCall."""
    if depth > MOST_DEEP:
        raise NoCall(INVALID_JSON)
    first = text[at : at + 1]
    if first in ("[", "("):
        return _read_list(text, at + 1, "]" if first == "[" else ")", depth)
    if first == "{":
        return _read_dict(text, at + 1, depth)
    if first in ('"', "'"):
        return _read_text(text, at)
    if number := _NUMBER.match(text, at):
        return _number(number[0]), number.end()
    name = _NAME.match(text, at)
    if name is None or name[0] not in CONSTANTS:
        raise NoCall(INVALID_JSON)
    return CONSTANTS[name[0]], name.end()


def _read_list(text: str, at: int, close: str, depth: int) -> tuple[list[Any], int]:
    values = []
    at = after_space(text, at)
    while not text.startswith(close, at):
        value, at = read_literal(text, at, depth + 1)
        values.append(value)
        at = next_item(text, at, close)
    return values, at + 1


def _read_dict(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    values: dict[str, Any] = {}
    at = after_space(text, at)
    while not text.startswith("}", at):
        key, at = read_literal(text, at, depth + 1)
        at = after_space(text, at)
        if not isinstance(key, str) or key in values or not text.startswith(":", at):
            raise NoCall(INVALID_JSON)
        values[key], at = read_literal(text, after_space(text, at + 1), depth + 1)
        at = next_item(text, at, "}")
    return values, at + 1


def next_item(text: str, at: int, close: str) -> int:
    """Behind the comma, or at the closing bracket. Raises NoCall where there is neither."""
    at = after_space(text, at)
    if text.startswith(",", at):
        return after_space(text, at + 1)
    if not text.startswith(close, at):
        raise NoCall(INVALID_JSON)
    return at


def _read_text(text: str, at: int) -> tuple[str, int]:
    quote = next(quote for quote in _QUOTES if text.startswith(quote, at))
    start = at = at + len(quote)
    while not text.startswith(quote, at):
        if at >= len(text):  # LFM2's template writes line breaks as they are, so that a model may, too
            raise NoCall(INVALID_JSON)
        at += 2 if text[at] == "\\" else 1
    found = _ESCAPE.sub(_unescaped, text[start:at])
    # A character beyond 16 bits may be spelled as JSON has it, in two escapes. Half of one is well_formed's.
    return found if is_well_formed(found) else _PAIR.sub(_joined, found), at + len(quote)


def _joined(match: re.Match[str]) -> str:
    return match[0].encode("utf-16", "surrogatepass").decode("utf-16")


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    if code in _ESCAPES:
        return _ESCAPES[code]
    if code[0] in "xuU" and len(code) > 1:
        number = int(code[1:], 16)
        return chr(number) if number <= 0x10FFFF else match[0]
    # An escape that Python does not know stays as it is.
    return chr(int(code, 8)) if code.isdigit() and code[0] < "8" else match[0]


def _number(text: str) -> int | float:
    try:
        if text.lstrip("+-").replace("_", "").isdigit():
            return int(text) or (Spelled("-0") if text.startswith("-") else 0)
        float(text)
    except ValueError as error:  # thousands of digits, or underscores where Python has none
        raise NoCall(INVALID_JSON) from error
    return Spelled(text if _JSON_NUMBER.fullmatch(text) else _as_json(text))


def _as_json(text: str) -> str:
    """A number as JSON writes it, with all its digits: `+.50` is 0.50."""
    mantissa, e, exponent = text.lstrip("+-").replace("_", "").lower().partition("e")
    whole, point, fraction = mantissa.partition(".")
    sign = "-" if text.startswith("-") else ""
    return f"{sign}{whole.lstrip('0') or '0'}{point and '.'}{point and (fraction or '0')}{e}{exponent}"

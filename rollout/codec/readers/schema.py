"""Values that are written without quotes: what they are is for the tool's schema to say.

`<parameter=count>\\n12\\n</parameter>` is a number where the tool declares one, and a text where it declares that.
Texts are kept as they were written. Families spell true and none in their own ways: Qwen3.5's template writes Python's
`True` and `None` into earlier turns, so that is what the model samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rollout.codec.readers.literals import CONSTANTS, after_space, read_literal
from rollout.codec.readers.values import INVALID_JSON, NoCall, read_value, skip_space

_ANY: frozenset[str] = frozenset()

#: The JSON types by Python's. Not all: an integer is a number, too.
_TYPES: dict[type, tuple[str, ...]] = {
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number", "integer"),
    list: ("array",),
    dict: ("object",),
    type(None): ("null",),
    str: ("string",),
}


def parameters_of(tools: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The schema of a tool's parameters; an empty one where nobody declares it."""
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and function.get("name") == name:
            parameters = function.get("parameters")
            return parameters if isinstance(parameters, Mapping) else {}
    return {}


def read_argument(text: str, schema: Mapping[str, Any], key: str) -> Any:
    """The value of the parameter `key`. Raises NoCall where it cannot be what is declared."""
    properties = schema.get("properties")
    declared = properties.get(key) if isinstance(properties, Mapping) else None
    return _typed(text, _types(declared if declared is not None else schema.get("additionalProperties")))


def _typed(text: str, types: frozenset[str]) -> Any:
    if types == {"string"}:
        return text
    word = text.strip()
    if word in CONSTANTS:
        value = CONSTANTS[word]
        if not types or _fits(value, types):
            return value
    try:
        value = _read_json(text)
    except NoCall:
        value = _read_python(text, types)
    # A number where a number or a text may be is the number; a list there is the text that it is.
    if value is not _NOTHING and (not types or "string" not in types or (_fits(value, types) and value != text)):
        return value if not (isinstance(value, str) and "string" in types) else text
    if types and "string" not in types:
        raise NoCall(INVALID_JSON)
    return text


_NOTHING = object()


def _read_json(text: str) -> Any:
    value, end = read_value(text, skip_space(text, 0))
    if skip_space(text, end) != len(text):
        raise NoCall(INVALID_JSON)
    return value


def _read_python(text: str, types: frozenset[str]) -> Any:
    """Python's own spelling of lists and objects, where one is declared."""
    if not types & {"array", "object"}:
        return _NOTHING
    try:
        value, end = read_literal(text, after_space(text, 0))
    except NoCall:
        return _NOTHING
    return value if isinstance(value, list | dict) and after_space(text, end) == len(text) else _NOTHING


def _fits(value: Any, types: frozenset[str]) -> bool:
    return bool(types.intersection(_TYPES[type(value)]))


def _types(schema: Any) -> frozenset[str]:
    """The JSON types that a schema allows; none where it does not say."""
    if not isinstance(schema, Mapping):
        return _ANY
    declared = schema.get("type")
    names = [declared] if isinstance(declared, str) else declared
    if isinstance(names, list | tuple):
        found = {name.lower() for name in names if isinstance(name, str)}
        return frozenset(found | {"null"}) if schema.get("nullable") is True else frozenset(found)
    for key in ("anyOf", "oneOf"):
        if isinstance(branches := schema.get(key), list | tuple):
            each = [_types(branch) for branch in branches]
            return frozenset().union(*each) if each and all(each) else _ANY
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if isinstance(values, list | tuple):
        return frozenset(_TYPES[type(value)][0] for value in values if type(value) in _TYPES)
    return _ANY

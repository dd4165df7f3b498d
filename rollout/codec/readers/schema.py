"""Values that are written without quotes: what they are is for the tool's schema to say.

`<parameter=count>\\n12\\n</parameter>` is a number where the tool declares one, and a text where it declares that.
Texts are kept as they were written. Families spell true and none in their own ways: Qwen3.5's template writes Python's
`True` and `None` into earlier turns, so that is what the model samples.

Schemas are what pydantic makes of classes, with references (`$defs`), and what people write by hand, with Python's
names of types.
"""

from __future__ import annotations

import decimal
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from rollout.codec.readers.literals import CONSTANTS, after_space, read_literal
from rollout.codec.readers.values import INVALID_JSON, NoCall, Spelled, read_spelled, skip_space

_ANY: frozenset[str] = frozenset()

#: The JSON type of each of Python's. An integer is a number, too, and 2.0 is an integer.
_TYPES: dict[type, str] = {
    bool: "boolean",
    int: "number",
    float: "number",
    Spelled: "number",
    list: "array",
    dict: "object",
    type(None): "null",
    str: "string",
}

#: What hand-written schemas call JSON's types. Under names of other types there is text: dates, files, codes.
_NAMES = {
    **{name: name for name in ("string", "integer", "number", "boolean", "array", "object", "null")},
    **{"int": "integer", "long": "integer", "float": "number", "double": "number", "bool": "boolean"},
    **{"list": "array", "tuple": "array", "set": "array", "dict": "object", "none": "null", "nonetype": "null"},
}
_ITEM_TYPES = re.compile(r"\[.*\]", re.DOTALL)
_OPTIONAL = "optional["

#: Schemas looked at for one argument, and how deep: references may go round, and fork at each step.
_MOST_SCHEMAS = 1_000
_MOST_STEPS = 32


def parameters_of(tools: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The schema of a tool's parameters; an empty one where nobody declares it."""
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and function.get("name") == name:
            parameters = function.get("parameters")
            return parameters if isinstance(parameters, Mapping) else {}
    return {}


def read_argument(text: str, schema: Mapping[str, Any], key: str) -> Any:
    """The value of the parameter `key`. Raises NoCall where it cannot be what is declared.

    None can be every parameter's but a text's: schemas of what may be left out seldom say so.
    """
    return _typed(text, _Declared(schema).types_of(key))


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
    if value is not _NOTHING and not types:
        return value
    # A number where a number or a text may be is the number; a list there is the text that it is.
    if value is not _NOTHING and _fits(value, types):
        return value if not isinstance(value, str) else text
    if types and "string" not in types:
        raise NoCall(INVALID_JSON)
    return text


_NOTHING = object()


def _read_json(text: str) -> Any:
    value, end = read_spelled(text, skip_space(text, 0))
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
    if value is None and "string" not in types:
        return True
    return _TYPES[type(value)] in types or ("integer" in types and _is_whole(value))


def _is_whole(value: Any) -> bool:
    """Whether a value is an integer, by its text: as a float 0.99999999999999999 would be one."""
    if not isinstance(value, Spelled):
        return type(value) is int
    try:
        _, digits, exponent = decimal.Decimal(value.raw).as_tuple()
    except decimal.InvalidOperation:  # an exponent of many digits
        return False
    return isinstance(exponent, int) and (exponent >= 0 or not any(digits[exponent:]))


class _Declared:
    """What the schema of a tool's parameters says of one of them."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._roots: list[Any] = [schema]
        """Where references are looked up."""
        self._left = _MOST_SCHEMAS

    def types_of(self, key: str) -> frozenset[str]:
        """The JSON types that a parameter may have; none where nothing is said."""
        schema = self._roots[0]
        found = list(self._declarations(schema, key, 0)) or [schema.get("additionalProperties")]
        self._roots += found  # a class's own schema, put in as it is, has its references within itself
        return self._either(found, 0)

    def _declarations(self, schema: Any, key: str, depth: int) -> Iterator[Any]:
        """The parameter's schemas: several where the parameters are one of several objects."""
        if not self._may_look(schema, depth):
            return
        properties = schema.get("properties")
        if isinstance(properties, Mapping) and key in properties:
            yield properties[key]
            return
        parts = [self._target(schema.get("$ref"))]
        for each in (*parts, *(part for word in ("allOf", "anyOf", "oneOf") for part in _rows(schema.get(word)))):
            yield from self._declarations(each, key, depth + 1)

    def _may_look(self, schema: Any, depth: int) -> bool:
        self._left -= 1
        return isinstance(schema, Mapping) and self._left >= 0 and depth <= _MOST_STEPS

    def _types(self, schema: Any, depth: int) -> frozenset[str]:
        if not self._may_look(schema, depth):
            return _ANY
        found = _both(_named_types(schema.get("type")), _value_types(schema))
        found = _both(found, self._types(self._target(schema.get("$ref")), depth + 1))
        for each in _rows(schema.get("allOf")):
            found = _both(found, self._types(each, depth + 1))
        for word in ("anyOf", "oneOf"):
            found = _both(found, self._either(_rows(schema.get(word)), depth + 1))
        return found | {"null"} if found and schema.get("nullable") is True else found

    def _either(self, schemas: Sequence[Any], depth: int) -> frozenset[str]:
        each = [self._types(schema, depth) for schema in schemas]
        return frozenset().union(*each) if each and all(each) else _ANY

    def _target(self, reference: Any) -> Any:
        """The schema that a reference within the same document names; None where there is none."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        names = [name.replace("~1", "/").replace("~0", "~") for name in unquote(reference).split("/")[1:]]
        for root in self._roots:
            found = root
            for name in names:
                found = found.get(name) if isinstance(found, Mapping) else None
            if found is not None:
                return found
        return None


def _rows(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _both(one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
    """The types that both allow; those of the first where they contradict each other."""
    if not one or not other:
        return one or other
    return (_with_integers(one) & _with_integers(other)) or one


def _with_integers(types: frozenset[str]) -> frozenset[str]:
    return types | {"integer"} if "number" in types else types


def _named_types(declared: Any) -> frozenset[str]:
    """The types that `type` names."""
    names = [declared] if isinstance(declared, str) else _rows(declared)
    each = [_types_named(name) for name in names if isinstance(name, str)]
    return frozenset().union(*each) if all(each) else _ANY


def _types_named(name: str) -> frozenset[str]:
    """Those of one name, be it written as Python has them: `int | None`, `list[str]`, `Optional[float]`."""
    name, found = name.strip().lower().replace("typing.", ""), set()
    while name.startswith(_OPTIONAL):
        name = name.removeprefix(_OPTIONAL).removesuffix("]")
        found.add("null")
    names = [each.strip() for each in _ITEM_TYPES.sub("", name).split("|")]
    if "any" in names or "" in names:
        return _ANY
    return frozenset(found.union(_NAMES.get(each, "string") for each in names))


def _value_types(schema: Mapping[str, Any]) -> frozenset[str]:
    """The types of the values that are allowed, where they are listed."""
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    return frozenset(_TYPES[type(value)] for value in _rows(values) if type(value) in _TYPES)

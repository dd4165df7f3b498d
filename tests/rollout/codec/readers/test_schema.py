"""What a tool's schema declares, by pydantic or by hand, is what a value without quotes becomes."""

from __future__ import annotations

import enum
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.codec.readers.schema import read_argument
from rollout.codec.readers.values import NoCall

NO_CALL = "no call"


def read(text: str, schema: Any, **more: Any) -> Any:
    """The value of a parameter that is declared so; `more` are the schema's other keys."""
    try:
        return read_argument(text, {"type": "object", "properties": {"a": schema}, **more}, "a")
    except NoCall:
        return NO_CALL


class Size(enum.StrEnum):
    SMALL = "1"
    LARGE = "2"


class Nested(pydantic.BaseModel):
    size: Size
    inner: Nested | None = None


class Asked(pydantic.BaseModel):
    size: Size
    perhaps: Size | None = None
    preset: Size = Size.SMALL
    many: list[Size] = []
    nested: Nested | None = None
    count: int = 0
    either: int | Size = 0


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("size", "1", "1"),
        ("perhaps", "1", "1"),
        ("perhaps", "null", None),
        ("preset", "2", "2"),
        ("many", '["1"]', ["1"]),
        ("nested", '{"size": "1"}', {"size": "1"}),
        ("nested", "None", None),
        ("count", "1", 1),
        ("either", "1", 1),
        ("either", "small", "small"),
    ],
)
def test_what_pydantic_makes_of_a_class_is_understood(key: str, text: str, value: Any) -> None:
    """Its enums and models are references, alone, beside null, and with a default."""
    assert read_argument(text, Asked.model_json_schema(), key) == value


DEFS = {
    "Text": {"enum": ["1", "2"], "type": "string"},
    "a/b~c %": {"type": "integer"},
    "Again": {"$ref": "#/$defs/Text"},
}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"$ref": "#/$defs/Text"}, "1"),
        ({"$ref": "#/definitions/Text"}, "1"),
        ({"$ref": "#/$defs/Again"}, "1"),
        ({"$ref": "#/$defs/a~1b~0c%20%25"}, 1),
        ({"$ref": "#/properties/b"}, "1"),
        ({"$ref": "#/$defs/Local", "$defs": {"Local": {"type": "string"}}}, "1"),
        ({"anyOf": [{"$ref": "#/$defs/Text"}, {"type": "null"}]}, "1"),
        ({"oneOf": [{"$ref": "#/$defs/Text"}, {"type": "integer"}]}, 1),
        ({"allOf": [{"$ref": "#/$defs/Text"}], "default": "1"}, "1"),
        ({"allOf": [{"type": ["string", "integer"]}, {"type": ["string", "null"]}]}, "1"),
        ({"allOf": [{"type": "number"}, {"type": "integer"}]}, 1),
        ({"type": ["string", "integer"], "enum": ["1", "2"]}, "1"),
        ({"type": "string", "enum": [1, 2]}, "1"),
        ({"type": "string", "anyOf": [{"minLength": 1}, {"maxLength": 0}]}, "1"),
        ({"$ref": "#/$defs/None"}, 1),
        ({"$ref": "https://example.org/schema#/$defs/Text"}, 1),
    ],
)
def test_references_and_all_of(schema: Any, value: Any) -> None:
    """A reference is what it names, within the tool's schema; several things said hold together; else nothing is."""
    more = {"type": "object", "properties": {"a": schema, "b": {"type": "string"}}, "$defs": DEFS, "definitions": DEFS}
    assert read_argument("1", more, "a") == value


def test_parameters_that_are_a_reference_themselves() -> None:
    """As pydantic writes those of a class that holds itself, and of one of several classes."""
    assert read_argument("1", Nested.model_json_schema(), "size") == "1"
    one = {"properties": {"a": {"type": "string"}}}
    other = {"properties": {"a": {"type": "null"}, "b": {"type": "string"}}}
    for word in ("anyOf", "oneOf", "allOf"):
        assert read_argument("1", {word: [one, other]}, "a") == "1"
        assert read_argument("1", {word: [one, other]}, "b") == "1"
        assert read_argument("1", {word: [one, other], "additionalProperties": {"type": "string"}}, "c") == "1"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("str", "1", "1"),
        ("str", "abc", "abc"),
        ("int", "1", 1),
        ("int", "abc", NO_CALL),
        ("float", "1.5", 1.5),
        ("float", "abc", NO_CALL),
        ("double", "1.5", 1.5),
        ("bool", "True", True),
        ("bool", "1", NO_CALL),
        ("list", "['x']", ["x"]),
        ("List[int | str]", "[1]", [1]),
        ("tuple", "(1, 2)", [1, 2]),
        ("dict", "{'a': 1}", {"a": 1}),
        ("dict[str, Any]", '{"a": 1}', {"a": 1}),
        ("Optional[int]", "None", None),
        ("typing.Optional[str]", "1", "1"),
        ("typing.Optional[str]", "None", None),
        ("int | None", "1", 1),
        ("str | None", "1", "1"),
        ("NoneType", "None", None),
        ("any", "1", 1),
        ("Any", "abc", "abc"),
        ("", "1", 1),
        ("date", "2024", "2024"),
        ("uuid", "12", "12"),
        (["str", "None"], "1", "1"),
        (["string", "any"], "1", 1),
    ],
)
def test_pythons_names_of_types_are_jsons(name: Any, text: str, value: Any) -> None:
    """As hand-written schemas have them. What has another name is text."""
    assert read(text, {"type": name}) == value


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("integer", "[1]", NO_CALL),
        ("integer", "true", NO_CALL),
        ("integer", "True", NO_CALL),
        ("integer", '"1"', NO_CALL),
        ("integer", "1.5", NO_CALL),
        ("integer", "0.99999999999999999999", NO_CALL),
        ("integer", "12345678901234567890.5", NO_CALL),
        ("integer", "1e-99999999999999999999", NO_CALL),
        ("integer", "12.0", 12.0),
        ("integer", "1.5e1", 15.0),
        ("integer", "-0", 0),
        ("number", "true", NO_CALL),
        ("number", "{}", NO_CALL),
        ("number", "1", 1),
        ("boolean", "1", NO_CALL),
        ("boolean", "0.0", NO_CALL),
        ("boolean", '"true"', NO_CALL),
        ("array", "{}", NO_CALL),
        ("array", "1", NO_CALL),
        ("object", "[]", NO_CALL),
        ("object", "['x']", NO_CALL),
        ("null", "1", NO_CALL),
        ("integer", "null", None),
        ("boolean", "None", None),
        (["integer", "string"], "true", "true"),
        (["integer", "string"], "1.5", "1.5"),
        (["number", "string"], "1e999", "1e999"),
        (["boolean", "integer"], "1", 1),
        (["boolean", "integer"], "true", True),
    ],
)
def test_a_value_of_another_type_is_not_what_is_declared(kind: Any, text: str, value: Any) -> None:
    """It is a text where that may be, else there is no call. None stands for what is left out, whatever it would be."""
    found = read(text, {"type": kind})
    assert (found, type(found) is bool) == (value, type(value) is bool)


KINDS = ("string", "integer", "number", "boolean", "array", "object", "null")
INLINE = st.recursive(
    st.sampled_from([{"type": kind} for kind in KINDS]) | st.sampled_from([{"enum": ["1", "x"]}, {"const": 1}, {}]),
    lambda inner: st.builds(lambda word, each: {word: each}, st.sampled_from(["anyOf", "oneOf"]), st.lists(inner)),
    max_leaves=6,
)
SAID = ("1", "x", "true", "None", "[1]", '{"a": 1}', "1.5", '"x"', " 1 ", "")


@given(schema=INLINE, data=st.data())
def test_a_schema_with_references_is_the_one_without(schema: dict[str, Any], data: st.DataObject) -> None:
    """Wherever pydantic, or a person, moves a part of it to the definitions."""
    definitions: dict[str, Any] = {}

    def moved(part: dict[str, Any]) -> dict[str, Any]:
        inner = {key: [moved(each) for each in value] if key.endswith("Of") else value for key, value in part.items()}
        how = data.draw(st.sampled_from(["inline", "ref", "allOf"]))
        if how == "inline":
            return inner
        definitions[name := f"D{len(definitions)}"] = inner
        reference = {"$ref": f"#/$defs/{name}"}
        return reference if how == "ref" else {"allOf": [reference], "title": "x"}

    with_references = moved(schema)
    for text in SAID:
        assert read(text, with_references, **{"$defs": definitions}) == read(text, schema)


ANY_SCHEMA = st.recursive(
    st.sampled_from([{"$ref": f"#/$defs/{name}"} for name in "xyz"]) | st.sampled_from(["string", 1, None, True, {}]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$ref", "anyOf", "allOf", "type", "enum", "properties"]), inner)
    ),
    max_leaves=10,
)


@given(schema=ANY_SCHEMA, definitions=st.dictionaries(st.sampled_from("xyz"), ANY_SCHEMA), text=st.sampled_from(SAID))
def test_whatever_a_schema_is_it_is_read_to_an_end(schema: Any, definitions: Any, text: str) -> None:
    """References that go round, and words where schemas belong: a value, or no call, and nothing raised."""
    read(text, schema, **{"$defs": definitions})


def test_references_that_fork_at_each_step_cost_little() -> None:
    """Thirty definitions, each of which names the next one twice, are a billion ways."""
    forks = {f"D{at}": {"anyOf": [{"$ref": f"#/$defs/D{at + 1}"}] * 2} for at in range(30)}
    assert read("1", {"$ref": "#/$defs/D0"}, **{"$defs": forks}) == 1
    assert read("1", {"type": "string", "$ref": "#/$defs/D0"}, **{"$defs": forks}) == "1"

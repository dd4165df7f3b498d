"""A function as the tool that a model is offered: its types, defaults and docstring, or a refusal that says why not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, NotRequired, Optional, TypedDict

import msgspec
import pytest

from rollout import Env, tool_spec
from rollout.errors import ConfigError
from rollout.play.answers import read_tools


class Color(Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: int = 0


class Filter(TypedDict):
    word: str
    limit: NotRequired[int]


@dataclass
class Tree:
    kids: list[Tree]


def properties(function: Callable[..., Any]) -> dict[str, Any]:
    found: dict[str, Any] = tool_spec(function)["function"]["parameters"]["properties"]
    return found


def search(query: str, limit: int = 5, order: Literal["new", "old"] = "new") -> list[str]:
    """Searches the library
    for a text.

    Answers titles.

    Args:
        query: What to look for;
            may be long: very.
        limit (int, optional): How many results.
        order: Which come first.

    Returns:
        order: no parameter.
    """
    return [query]


def test_a_function_is_its_own_description() -> None:
    """Name, text, types, defaults, and what each parameter is for."""
    assert tool_spec(search) == {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Searches the library for a text.\n\nAnswers titles.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"description": "What to look for; may be long: very.", "type": "string"},
                    "limit": {"description": "How many results.", "type": "integer", "default": 5},
                    "order": {
                        "description": "Which come first.",
                        "type": "string",
                        "enum": ["new", "old"],
                        "default": "new",
                    },
                },
                "required": ["query"],
            },
        },
    }


def test_it_can_be_an_environments_tool() -> None:
    """What is made is plain data that can be sent."""
    env = Env()
    env.tools = [tool_spec(search)]
    assert read_tools(env, []) == [tool_spec(search)]


def test_every_type_of_json_is_described() -> None:
    """Numbers, lists, mappings, Optional, enums, and types with fields, whose schemas stand in place."""

    def every(
        a: float,
        b: bool,
        c: Optional[str],  # noqa: UP045  # as it is still written
        d: list[dict[str, int]],
        e: Color,
        f: Point,
        g: Filter,
        h: Any,
        i: int | None = None,
    ) -> None: ...

    assert properties(every) == {
        "a": {"type": "number"},
        "b": {"type": "boolean"},
        "c": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "d": {"type": "array", "items": {"type": "object", "additionalProperties": {"type": "integer"}}},
        "e": {"type": "string", "title": "Color", "enum": ["red"]},
        "f": {
            "title": "Point",
            "type": "object",
            "properties": {"x": {"type": "integer"}, "y": {"type": "integer", "default": 0}},
            "required": ["x"],
        },
        "g": {
            "title": "Filter",
            "type": "object",
            "properties": {"word": {"type": "string"}, "limit": {"type": "integer"}},
            "required": ["word"],
        },
        "h": {},
        "i": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
    }
    assert tool_spec(every)["function"]["parameters"]["required"] == list("abcdefgh")


def test_a_method_is_described_without_its_object() -> None:
    """As are partials, and objects that can be called, under the name that is given."""

    class Shelf:
        def take(self, title: str) -> str:
            """Takes a book."""
            return title

        def __call__(self, title: str) -> str:
            return title

    assert list(properties(Shelf().take)) == ["title"]
    assert tool_spec(Shelf(), name="shelf", description="A shelf.")["function"]["description"] == "A shelf."
    part = tool_spec(functools.partial(search, limit=2), name="two")["function"]
    assert (part["name"], part["parameters"]["properties"]["limit"]["default"]) == ("two", 2)


def test_a_parameter_may_be_described_as_sphinx_has_it() -> None:
    """`:param name:`, with or without its type, and the text ends before it."""

    def add(a: int, b: int) -> int:
        """Adds.

        :param a: the first
        :param int b: the second
        :returns: the sum
        """
        return a + b

    assert tool_spec(add)["function"]["description"] == "Adds."
    assert [one["description"] for one in properties(add).values()] == ["the first", "the second"]


def test_a_parameter_may_be_described_by_its_annotation() -> None:
    """As other tools' authors write it; the docstring comes first."""

    def buy(
        what: Annotated[str, "The thing."], count: Annotated[int, msgspec.Meta(description="So many.", ge=1)]
    ) -> None:
        """Buys."""

    assert properties(buy) == {
        "what": {"description": "The thing.", "type": "string"},
        "count": {"type": "integer", "description": "So many.", "minimum": 1},
    }


def test_a_default_that_is_no_json_only_makes_it_optional() -> None:
    """A mark of the function's own is not told to the model."""

    def given(a: int = object()) -> None: ...  # type: ignore[assignment]

    assert tool_spec(given)["function"]["parameters"] == {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": [],
    }


def test_a_default_that_json_does_not_have_is_left_out() -> None:
    """A number that is none, also deep in a list, would make a tool that cannot be sent."""

    def takes(a: float = float("nan"), b: list[float] = [1.0, float("inf")], c: float = 0.5) -> None: ...  # noqa: B006

    spec = tool_spec(takes)
    assert [schema.get("default") for schema in properties(takes).values()] == [None, None, 0.5]
    assert spec["function"]["parameters"]["required"] == []


def untyped(a) -> None: ...  # type: ignore[no-untyped-def]


def positional(a: int, /) -> None: ...


def starred(*args: int) -> None: ...


def keywords(**rest: int) -> None: ...


def calls(done: Callable[[], int]) -> None: ...


def endless(tree: Tree) -> None: ...


def unnamed(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


class Unreadable:
    """Says of its signature what is none."""

    __name__ = "unreadable"
    __signature__ = 5

    def __call__(self) -> None: ...


class RaisesMeta(type):
    def __repr__(cls) -> str:
        raise RuntimeError("no repr")

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class Raises(metaclass=RaisesMeta):
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        raise OSError("no schema")

    @classmethod
    def model_json_schema(cls, **options: Any) -> Any:
        raise OSError("no schema")


def raises(a: Raises) -> None: ...


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (Unreadable(), "tool unreadable: its signature cannot be read: "),
        (raises, "tool raises, parameter 'a': its annotation cannot be described as JSON .*; use numbers"),
        (untyped, r"tool untyped, parameter 'a' has no annotation: write its type, such as `a: str`"),
        (positional, "parameter 'a': positional-only cannot be described"),
        (starred, r"parameter 'args': \*args cannot be described"),
        (keywords, r"parameter 'rest': \*\*kwargs cannot be described"),
        (calls, "tool calls, parameter 'done': .*Callable.* cannot be described as JSON"),
        (endless, "parameter 'tree': Tree cannot be described as JSON .Tree holds itself.; use numbers"),
        (unnamed, "tool unnamed: its annotations cannot be read: name 'Nowhere' is not defined"),
        (lambda: 0, "has no name that a model could call it by: give name="),
    ],
)
def test_what_cannot_be_described_is_named(function: Callable[..., Any], said: str) -> None:
    """In one line, with the function, the parameter, and what to write instead."""
    with pytest.raises(ConfigError, match=said):
        tool_spec(function)


def test_a_pydantic_model_tells_its_own_schema() -> None:
    """Its references stand in place, as all others do."""
    pydantic = pytest.importorskip("pydantic")
    inner = pydantic.create_model("Inner", z=(str, ...))
    outer = pydantic.create_model("Outer", inner=(list[inner], ...))  # type: ignore[valid-type]

    def takes(given: Any) -> None: ...

    takes.__annotations__["given"] = outer
    schema: Mapping[str, Any] = properties(takes)["given"]
    assert schema["properties"]["inner"]["items"]["properties"]["z"]["type"] == "string"
    assert "$ref" not in str(schema)

"""A function's signature and docstring -> the tool that a model is offered, in OpenAI's form.

    def search(query: str, limit: int = 5) -> list[str]:
        '''Searches the library.

        Args:
            query: What to look for.
            limit: How many results to give at most.
        '''

    tools = [tool_spec(search)]

Types become JSON Schema by msgspec: numbers, texts, lists, mappings, Optional, Literal, enums, dataclasses, TypedDicts,
and pydantic's models by their own schema. Schemas of named types are written in place, since many chat templates know
no references. What no JSON could give is refused by name.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from rollout.door import error_text, plain
from rollout.errors import ConfigError

#: The headings under which a docstring describes parameters: Google's, and what others call them.
_ARGUMENTS = frozenset({"args:", "arguments:", "parameters:", "params:", "keyword args:", "keyword arguments:"})

#: "name: text" and "name (type, optional): text" beneath such a heading; ":param type name: text" anywhere.
_GOOGLE = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_SPHINX = re.compile(r":param\s+(?:[^:]*\s)?(\w+)\s*:\s*(.*)")

#: A heading of Google's, which ends the one before it.
_HEADING = re.compile(r"[A-Z][A-Za-z ]*:")

_REFERENCE = "#/$defs/"

#: Parameters that a call by name cannot give.
_UNNAMED: dict[Any, str] = {
    inspect.Parameter.VAR_POSITIONAL: "*args",
    inspect.Parameter.VAR_KEYWORD: "**kwargs",
    inspect.Parameter.POSITIONAL_ONLY: "positional-only",
}


def tool_spec(
    function: Callable[..., Any], *, name: str | None = None, description: str | None = None
) -> dict[str, Any]:
    """The function as a tool: its name, its docstring's text, and a JSON Schema of its parameters.

    `name` and `description` take the place of its own. A parameter with a default may be left out by the model; one
    without an annotation, and what a call by name cannot give (`*args`, positional-only), is refused. Raises
    ConfigError, naming the function and the parameter.
    """
    what = name or _name_of(function)
    hints = _hints(function, what)
    summary, described = _read_docstring(inspect.getdoc(_documented(function)) or "")
    properties: dict[str, Any] = {}
    required = []
    for parameter in _parameters(function, what):
        schema = _parameter_schema(what, parameter, hints)
        text = described.get(parameter.name) or _annotated_text(hints[parameter.name])
        if text and "description" not in schema:
            schema = {"description": text, **schema}
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    summary = summary if description is None else description
    return {"type": "function", "function": {"name": what, "description": summary, "parameters": parameters}}


def _parameters(function: Callable[..., Any], what: str) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except Exception as error:  # a class in C tells none, and an object may tell a wrong one
        raise ConfigError(f"tool {what}: its signature cannot be read: {error_text(error)}") from error


def _name_of(function: Callable[..., Any]) -> str:
    found = getattr(_documented(function), "__name__", None)
    if not isinstance(found, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found):
        raise ConfigError(f"{function!r} has no name that a model could call it by: give name=")
    return found


def _documented(function: Callable[..., Any]) -> Any:
    """What has the name and the docstring: a partial's function, or the object itself."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _hints(function: Callable[..., Any], what: str) -> dict[str, Any]:
    found = inspect.unwrap(_documented(function))
    if isinstance(found, type):
        found = inspect.getattr_static(found, "__init__")
    elif not inspect.isroutine(found):
        found = type(found).__call__
    try:
        return get_type_hints(found, include_extras=True)
    except Exception as error:  # an annotation may be any expression
        raise ConfigError(f"tool {what}: its annotations cannot be read: {error_text(error)}") from error


def _parameter_schema(what: str, parameter: inspect.Parameter, hints: Mapping[str, Any]) -> dict[str, Any]:
    place = f"tool {what}, parameter {parameter.name!r}"
    if parameter.kind in _UNNAMED:
        raise ConfigError(
            f"{place}: {_UNNAMED[parameter.kind]} cannot be described: a model calls by name, so name each parameter"
        )
    if parameter.name not in hints:
        hint = "; give the method of an object, not of its class" if parameter.name == "self" else ""
        raise ConfigError(f"{place} has no annotation: write its type, such as `{parameter.name}: str`{hint}")
    try:
        schemas, named = msgspec.json.schema_components(
            [hints[parameter.name]], schema_hook=_foreign_schema, ref_template=f"{_REFERENCE}{{name}}"
        )
        schema: dict[str, Any] = _in_place(dict(schemas[0]), named, ())
    except Exception as error:  # msgspec's own, and whatever a type's own methods raise
        raise ConfigError(
            f"{place}: {_type_name(hints[parameter.name])} cannot be described as JSON ({error_text(error)}); "
            "use numbers, texts, lists, mappings, Literal, dataclasses or TypedDicts"
        ) from error
    if parameter.default is not parameter.empty and "default" not in schema:
        # What cannot be written is a mark of the function's own for "not given".
        with contextlib.suppress(Exception):
            schema["default"] = plain(msgspec.to_builtins(parameter.default))
    return schema


def _annotated_text(hint: Any) -> str | None:
    """What `Annotated[int, "how many"]` says, or pydantic's `Field(description=...)` in its place."""
    said = (one if isinstance(one, str) else getattr(one, "description", None) for one in get_args(hint)[1:])
    return next((text for text in said if isinstance(text, str)), None) if get_origin(hint) is Annotated else None


def _foreign_schema(kind: type) -> dict[str, Any]:
    """pydantic's models tell their own."""
    if (tell := getattr(kind, "model_json_schema", None)) is None:
        raise TypeError(f"{_type_name(kind)} is no type of JSON")
    schema: dict[str, Any] = tell(ref_template=f"{_REFERENCE}{{model}}")
    whole: dict[str, Any] = _in_place(schema, schema.pop("$defs", {}), ())
    return whole


def _in_place(schema: Any, named: Mapping[str, Any], within: tuple[str, ...]) -> Any:
    """The schema with each reference's own in its place. Raises ValueError for a type that holds itself."""
    if isinstance(schema, list):
        return [_in_place(item, named, within) for item in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith(_REFERENCE):
        name = reference.removeprefix(_REFERENCE)
        if name in within:
            raise ValueError(f"{name} holds itself")
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return {**_in_place(named[name], named, (*within, name)), **rest}
    whole = {key: _in_place(value, named, within) for key, value in schema.items()}
    values = whole.get("enum")
    if values and "type" not in whole and all(isinstance(value, str) for value in values):
        whole = {"type": "string", **whole}  # templates that write types ask for it
    return whole


def _type_name(kind: Any) -> str:
    try:
        return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
    except Exception:  # its own repr
        return "its annotation"


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """(the text before the first heading, the parameters' descriptions), their lines joined."""
    lines = text.splitlines()
    end = next((at for at, line in enumerate(lines) if _is_end(line)), len(lines))
    summary = re.sub(r"(?<=\S)[ \t]*\n(?=\S)", " ", "\n".join(lines[:end])).strip()
    return summary, dict(_described(lines[end:]))


def _is_end(line: str) -> bool:
    return _is_heading(line) or line.lstrip().startswith((":param", ":return", ":raises", ":type"))


def _is_heading(line: str) -> bool:
    return line.strip().lower() in _ARGUMENTS or bool(_HEADING.fullmatch(line.rstrip()))


def _described(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Parameters with their descriptions. A line that stands deeper than its parameter's goes on with it."""
    within, depth, name, said = False, 0, "", list[str]()
    for line in [*lines, "End:"]:
        indent, content = len(line) - len(line.lstrip()), line.strip()
        if name and content and indent > depth and not _is_heading(line):
            said.append(content)
            continue
        if content and name:
            yield name, " ".join(part for part in said if part)
            name = ""
        if _is_heading(line):
            within = content.lower() in _ARGUMENTS
            continue
        found = _SPHINX.fullmatch(content) or (_GOOGLE.fullmatch(content) if within else None)
        if found:
            name, said, depth = found[1], [found[2]], indent

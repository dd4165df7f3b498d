"""Tools of OpenAI Responses as functions, which is all that a model here calls, and back.

function              the function
custom "apply_patch"  a function with one text, `input`; its grammar stands in the description
namespace "crm" of "find"   the function "crm__find"
web_search            left out: Codex offers it whatever the model is
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from rollout.dialects import tools
from rollout.dialects.answers import arguments_object
from rollout.dialects.fields import decoded, unsupported
from rollout.dialects.types import DialectError

#: Hosted tools that a model here is not offered, as programs offer them unasked.
_LEFT_OUT = ("web_search", "web_search_preview", "image_generation", "tool_search")


def read_tools(raw: msgspec.Raw) -> tools.Tools:
    """The tools of a request."""
    specs, names, left_out = list[dict[str, Any]](), dict[str, tuple[str, str, str | None]](), list[str]()
    for at, tool in enumerate(decoded(raw, list[dict[str, Any]], "tools")):
        place, kind = f"tools[{at}]", tool.get("type")
        if kind == "namespace":
            space, inner = _name(tool, place), tool.get("tools")
            if not isinstance(inner, list) or not all(isinstance(each, dict) for each in inner):
                raise DialectError.of_field(f"{place}.tools", "must be a list of tools")
            about = tool.get("description")
            for other, each in enumerate(inner):
                each = {**each, "description": each.get("description") or about}
                _add(each, f"{place}.tools[{other}]", space, specs, names)
        elif kind in _LEFT_OUT:
            left_out.append(f"the tool {kind}")
        else:
            _add(tool, place, None, specs, names)
    return tools.Tools(specs=tuple(specs), names=names, left_out=tuple(left_out))


def flat_name(name: str, namespace: str | None) -> str:
    """The one name of a function in a namespace."""
    if not namespace:
        return name
    return f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"


def custom_arguments(text: str) -> str:
    """A custom tool's input as the arguments of its function."""
    return json.dumps({"input": text}, ensure_ascii=False)


def custom_input(arguments: str) -> str:
    """The other way round; arguments that are something else are the input themselves."""
    found = arguments_object(arguments).get("input")
    return found if isinstance(found, str) else arguments


def plain_choice(asked: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """A tool choice by the function's name."""
    if isinstance(asked, dict) and asked.get("type") in ("function", "custom"):
        space = asked.get("namespace")
        name = flat_name(str(asked.get("name")), space if isinstance(space, str) else None)
        return {"type": "function", "name": name}
    return asked


def _add(
    tool: Mapping[str, Any],
    place: str,
    namespace: str | None,
    specs: list[dict[str, Any]],
    names: dict[str, tuple[str, str, str | None]],
) -> None:
    kind = tool.get("type")
    if kind not in ("function", "custom"):
        raise unsupported(f"{place}.type", f"tools of type {kind!r}, only function, custom and namespace")
    name, about = _name(tool, place), tools.description(tool, place)
    flat = flat_name(name, namespace)
    if any(spec["function"]["name"] == flat for spec in specs):
        raise DialectError.of_field(f"{place}.name", f"{flat!r} is there twice")
    if kind == "custom":
        specs.append(tools.function(flat, _with_grammar(about, tool.get("format")), _INPUT))
    else:
        specs.append(tools.function(flat, about, tool.get("parameters")))
    if kind == "custom" or namespace:
        names[flat] = kind, name, namespace


_INPUT = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}


def _with_grammar(about: str | None, form: Any) -> str | None:
    if not isinstance(form, dict) or form.get("type") != "grammar":
        return about
    grammar = f"The input follows this {form.get('syntax', 'lark')} grammar:\n{form.get('definition', '')}"
    return f"{about}\n\n{grammar}" if about else grammar


def _name(tool: Mapping[str, Any], place: str) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        raise DialectError.of_field(f"{place}.name", "is required, as text", "missing_required_parameter")
    return name

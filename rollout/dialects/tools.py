"""Tools as OpenAI's function specs, which is how a model is offered them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from rollout.dialects.fields import decoded, unsupported
from rollout.dialects.types import DialectError


class Tools(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The tools that a request offers."""

    specs: tuple[dict[str, Any], ...] = ()
    """In OpenAI's form."""
    names: dict[str, tuple[str, str, str | None]] = {}
    """Of those that the dialect calls otherwise, by the function's name: its type, its name, and its namespace."""
    left_out: tuple[str, ...] = ()
    """What a model here is not offered."""


def function_tools(raw: msgspec.Raw) -> Tools:
    """The tools of a chat completion, as they came."""
    tools = decoded(raw, list[dict[str, Any]], "tools")
    for at, tool in enumerate(tools):
        if (kind := tool.get("type", "function")) != "function":
            raise unsupported(f"tools[{at}].type", f"tools of type {kind!r}, only functions")
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise DialectError.of_field(f"tools[{at}].function.name", "is required", "missing_required_parameter")
    return Tools(specs=tuple(map(without_marks, tools)))


def without_marks(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool without cache marks beside its fields; what its schema says stays as it is."""
    return {name: value for name, value in tool.items() if name != "cache_control"}


def function(name: str, description: str | None, parameters: Any) -> dict[str, Any]:
    """One function spec."""
    spec = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": {key: value for key, value in spec.items() if value is not None}}


def tool_choice(asked: str | dict[str, Any] | None, tools: Sequence[Mapping[str, Any]]) -> Any:
    """A tool choice as servers take it: "none", "required", or one function. None for what is so anyway."""
    if asked is None or asked == "auto" or (asked == "none" and not tools):
        return None
    if isinstance(asked, str):
        if asked not in ("none", "required"):
            raise DialectError.of_field("tool_choice", f"must be none, auto, required or a function, not {asked!r}")
        if not tools:
            raise DialectError.of_field("tool_choice", f"is {asked!r}, and there are no tools")
        return asked
    inner = asked.get("function", asked)
    name = inner.get("name") if isinstance(inner, dict) else None
    if asked.get("type", "function") != "function":
        raise unsupported("tool_choice", f"a choice of type {asked.get('type')!r}")
    if name not in {tool["function"]["name"] for tool in tools}:
        raise DialectError.of_field("tool_choice", f"names {name!r}, which is none of the tools")
    return {"type": "function", "function": {"name": name}}

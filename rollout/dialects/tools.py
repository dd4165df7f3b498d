"""Tools as OpenAI's function specs, which is how a model is offered them."""

from __future__ import annotations

from collections.abc import Mapping
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
    return Tools(specs=tuple({**_unmarked(tool), "function": _unmarked(tool["function"])} for tool in tools))


def _unmarked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a tool says, without a cache mark beside it; its schema stays as it is."""
    return {name: value for name, value in fields.items() if name != "cache_control"}


def description(tool: Mapping[str, Any], place: str) -> str | None:
    """What a tool is for. Raises DialectError where that is no text."""
    about = tool.get("description")
    if about is not None and not isinstance(about, str):
        raise DialectError.of_field(f"{place}.description", f"must be text, not {type(about).__name__}")
    return about


def function(name: str, description: str | None, parameters: Any) -> dict[str, Any]:
    """One function spec."""
    spec = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": {key: value for key, value in spec.items() if value is not None}}

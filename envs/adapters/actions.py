"""An action from what the model says, and what the model is told of an observation, where both are JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

#: How many braces may begin no object, before an answer is taken to have none.
_TRIES = 200

#: Of an action or an observation, but nothing of the game.
_BESIDE = frozenset({"metadata"})


def text_field(schema: Mapping[str, Any]) -> str | None:
    """The field that an answer's whole text is, where an action is one text: `{"message": "..."}`; else None."""
    fields = {name: field for name, field in schema.get("properties", {}).items() if name not in _BESIDE}
    wanted = [name for name in schema.get("required", fields) if name in fields]
    one = wanted[0] if len(wanted) == 1 else None
    return one if one is not None and fields[one].get("type") == "string" and "enum" not in fields[one] else None


def last_object(text: str) -> dict[str, Any] | None:
    """The last JSON object that stands in a text, in a block of code or by itself."""
    reader, found, at = json.JSONDecoder(), None, text.find("{")
    for _ in range(_TRIES):
        if at < 0:
            break
        try:
            found, end = reader.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        at = text.find("{", end)
    return found


def action_of(text: str, schema: Mapping[str, Any], checker: Any) -> dict[str, Any]:
    """The action that an answer names, as its schema wants it. Raises ValueError with what the model is told."""
    field, found = text_field(schema), last_object(text)
    if field is not None and (found is None or not found.keys() <= schema["properties"].keys()):
        found = {field: text}
    if found is None:
        raise ValueError("Please answer with one action as a JSON object.")
    wrong = next(iter(checker.iter_errors(found)), None)
    if wrong is not None:
        where = ".".join(str(part) for part in wrong.path)
        raise ValueError(f"This is no action: {where + ': ' if where else ''}{wrong.message:.300}")
    return found


def asked_for(schema: Mapping[str, Any]) -> str:
    """What the model is told of how to answer."""
    if (field := text_field(schema)) is not None:
        what = schema["properties"][field].get("description", "")
        return f"Your whole answer is taken as the {field}{f': {what}' if what else ''}."
    shown = {key: value for key, value in schema.items() if key in ("properties", "required", "$defs")}
    shown["properties"] = {name: each for name, each in schema.get("properties", {}).items() if name not in _BESIDE}
    return f"Answer with one action: a JSON object of this schema: {json.dumps(shown, ensure_ascii=False)}"


def told(observation: Mapping[str, Any]) -> str:
    """An observation as text: the one that it has, or all of its fields as JSON. Its metadata only where it has no
    other."""
    fields = {key: each for key, each in observation.items() if key not in _BESIDE and each not in (None, "", [], {})}
    fields = fields or dict(observation.get("metadata") or {})
    only = next(iter(fields.values())) if len(fields) == 1 else None
    return only if isinstance(only, str) else json.dumps(fields, ensure_ascii=False, default=str)


def tool_text(observation: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a tool's call failed, and what the model is told of it."""
    if error := observation.get("error"):
        return True, f"error: {error.get('message', error) if isinstance(error, Mapping) else error}"
    result = observation.get("result", {key: each for key, each in observation.items() if key not in _BESIDE})
    if isinstance(result, Mapping) and isinstance(blocks := result.get("content"), list):
        parts = [block.get("text", f"[{block.get('type')} left out]") for block in blocks if isinstance(block, Mapping)]
        return bool(result.get("is_error")), "\n".join(parts)
    return False, result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)

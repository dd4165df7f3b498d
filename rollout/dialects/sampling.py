"""How an answer is to be drawn, by OpenAI's and vLLM's names, whichever dialect says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rollout.dialects.fields import Fields, unsupported
from rollout.dialects.types import DialectError

#: What any dialect may say beside its own fields, each with its type.
COMMON: Mapping[str, Any] = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"), float),
    **dict.fromkeys(("top_k", "seed", "min_tokens"), int),
    **dict.fromkeys(("repetition_penalty", "length_penalty"), float),
    **dict.fromkeys(("stop_token_ids", "allowed_token_ids"), list[int]),
    **dict.fromkeys(("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"), bool),
    "bad_words": list[str],
}

NO_LOGPROBS = "a program is not told logprobs; the rollout's record has them"


def cap(fields: Fields, *names: str) -> int | None:
    """The program's own cap on the answer's tokens, by the first of these names that is there."""
    found = [(name, value) for name in names if (value := fields.take(name, int)) is not None]
    if found and found[0][1] < 1:
        raise DialectError.of_field(found[0][0], "must be at least 1", "integer_below_min_value")
    return found[0][1] if found else None


def given(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a request may ask for, what it does ask for: several calls in one answer are so anyway."""
    several = asked.get("parallel_tool_calls") is not False
    return {
        name: value
        for name, value in asked.items()
        if value is not None and value != [] and not (several and name == "parallel_tool_calls")
    }


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
    if name not in [tool["function"]["name"] for tool in tools]:
        raise DialectError.of_field("tool_choice", f"names {name!r}, which is none of the tools")
    return {"type": "function", "function": {"name": name}}

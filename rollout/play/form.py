"""What is asked of an answer's form (its format, a choice of tools) as what a server does on both of its routes.

Turn 1 goes to the server as messages and later ones as ids, so what holds on one route alone is refused: an answer that
is free from the second turn on would be worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from rollout.config import EngineConfig
from rollout.errors import ConfigError, MessageError
from rollout.transport import ServerInfo

#: Servers whose routes take `structured_outputs`, those of messages and those of ids alike.
_STRUCTURED = frozenset({"vllm"})

_FORM = frozenset({"tool_choice", "parallel_tool_calls", "response_format"})


class FormRefused(MessageError):
    """A form that this server cannot be held to."""

    def __init__(self, param: str, why: str) -> None:
        super().__init__(f"{param}: {why}")
        self.param = param


def settle_form(
    sampling: Mapping[str, Any], tools: Sequence[Mapping[str, Any]], config: EngineConfig, server: ServerInfo
) -> tuple[dict[str, Any], Sequence[Mapping[str, Any]]]:
    """The sampling parameters and the tools that say the same on both routes. Raises FormRefused."""
    settled = dict(sampling)
    if not _FORM.intersection(settled):
        return settled, tools
    settled.pop("parallel_tool_calls", None)  # a wish: no route holds a model to one call
    if settled.get("tool_choice") == "none":
        tools = ()  # a model that is shown tools may call one
    if config.mode == "tito" and server.token_route is not None:
        _for_ids(settled, server)
    return settled, tools


def settle_config(config: EngineConfig, server: ServerInfo) -> EngineConfig:
    """The same of the run's own sampling. Raises ConfigError: before anything is played."""
    try:
        if config.sampling.get("tool_choice") == "none":
            raise FormRefused("tool_choice", "which tools are shown is the environment's to say: leave it out")
        sampling, _ = settle_form(config.sampling, (), config, server)
    except FormRefused as refused:
        raise ConfigError(f"sampling: {refused}") from None
    return config if sampling == config.sampling else msgspec.structs.replace(config, sampling=sampling)


def _for_ids(sampling: dict[str, Any], server: ServerInfo) -> None:
    """Has parameters say what they mean on the routes of ids, too."""
    if (sampling.pop("tool_choice", None) or "auto") not in ("auto", "none"):
        why = "a call cannot be forced where prompts go out as tokens: leave it out, or take auto or none"
        raise FormRefused("tool_choice", why)
    wanted = sampling.pop("response_format", None)
    if wanted is None or (form := _structured(wanted)) is None:
        return
    if server.dialect not in _STRUCTURED:
        why = f"this server ({server.dialect}) cannot be held to a format where prompts go out as tokens: leave it out"
        raise FormRefused("response_format", why)
    sampling.setdefault("structured_outputs", form)


def _structured(wanted: object) -> Mapping[str, Any] | None:
    """OpenAI's format as vLLM's structured output; None for text."""
    match wanted:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"json_object": True}
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema}}:
            return {"json": schema}
    raise FormRefused("response_format", "its type must be text, json_object, or json_schema with a schema")

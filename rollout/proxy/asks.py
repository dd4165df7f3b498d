"""What a request asks, as what the rollout's session is asked: whose sampling holds, and what cannot be done.

Turn 1 goes to the server as messages and later ones as ids, so what is asked of an answer's form must be what a server
does on both routes, or it is refused: an answer that is free from the second turn on would be worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rollout.config import EngineConfig
from rollout.dialects.headers import Caller
from rollout.dialects.types import Call, DialectError
from rollout.play.session import Ask
from rollout.transport import ServerInfo

#: What a request asks of the answer's form: it holds whoever's sampling is used, for the program reads that form.
_FORM = frozenset(
    {
        *("stop", "response_format", "structured_outputs", "tool_choice"),
        *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    }
)

#: Servers whose routes take `structured_outputs`, those of messages and those of ids alike.
_STRUCTURED = frozenset({"vllm"})


def ask_of(call: Call, caller: Caller, config: EngineConfig, server: ServerInfo) -> Ask:
    """What the session is asked. Raises DialectError for what this server cannot do."""
    sampling = dict(call.sampling)
    sampling.pop("parallel_tool_calls", None)  # a wish: no route holds a model to one call
    tools = call.tools
    if sampling.get("tool_choice") == "none":
        tools = ()  # a model that is shown tools may call one
    if config.mode == "tito" and server.token_route is not None:
        _for_ids(sampling, server)
    max_tokens, args = call.max_tokens, call.template_args
    if config.agent_sampling == "run":
        sampling = {name: value for name, value in sampling.items() if name in _FORM}
        if max_tokens is not None and config.max_tokens is not None:
            max_tokens = min(max_tokens, config.max_tokens)  # both are caps
    elif call.effort is not None:
        args = {"reasoning_effort": call.effort, **args}
    return Ask(
        messages=call.messages,
        tools=tools,
        template_args={**config.template_args, **args} if args else None,
        max_tokens=max_tokens,
        sampling=sampling,
        agent=caller.agent or "",
        train=caller.train,
    )


def _for_ids(sampling: dict[str, Any], server: ServerInfo) -> None:
    """Has parameters say what they mean on the routes of ids, too. Raises DialectError."""
    if sampling.pop("tool_choice", "auto") not in ("auto", "none"):
        why = "a call cannot be forced where prompts go out as tokens: leave it out, or take auto or none"
        raise _refused("tool_choice", why)
    wanted = sampling.pop("response_format", None)
    if wanted is None or (form := _structured(wanted)) is None:
        return
    if server.dialect not in _STRUCTURED:
        why = f"this server ({server.dialect}) cannot be held to a format where prompts go out as tokens: leave it out"
        raise _refused("response_format", why)
    sampling.setdefault("structured_outputs", form)


def _structured(wanted: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """OpenAI's format as vLLM's structured output; None for text. Raises DialectError."""
    match wanted:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"json_object": True}
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema}}:
            return {"json": schema}
    raise _refused("response_format", "its type must be text, json_object, or json_schema with a schema")


def _refused(param: str, why: str) -> DialectError:
    return DialectError(400, f"{param}: {why}", code="unsupported_value", param=param)

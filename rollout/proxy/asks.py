"""What a request asks, as what the rollout's session is asked: whose sampling holds, and what cannot be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rollout.config import EngineConfig
from rollout.dialects.headers import Caller
from rollout.dialects.types import Call, DialectError
from rollout.play.session import Ask

#: What a request asks of the answer's form: it holds whoever's sampling is used, for the program reads that form.
_FORM = frozenset(
    {
        *("stop", "response_format", "structured_outputs"),
        *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    }
)

#: Not sent: a choice of tools becomes the tools that are shown, and a model cannot be held to one call.
_NOT_SENT = ("tool_choice", "parallel_tool_calls")


def ask_of(call: Call, caller: Caller, config: EngineConfig) -> Ask:
    """What the session is asked. Raises DialectError for what this server cannot do."""
    sampling = {name: value for name, value in call.sampling.items() if name not in _NOT_SENT}
    max_tokens = call.max_tokens
    args = call.template_args
    if config.agent_sampling == "run":
        sampling = {name: value for name, value in sampling.items() if name in _FORM}
        if max_tokens is not None and config.max_tokens is not None:
            max_tokens = min(max_tokens, config.max_tokens)  # both are caps
    elif call.effort is not None:
        args = {"reasoning_effort": call.effort, **args}
    return Ask(
        messages=call.messages,
        tools=_offered(call),
        template_args={**config.template_args, **args} if args else None,
        max_tokens=max_tokens,
        sampling=sampling,
        agent=caller.agent or "",
    )


def _offered(call: Call) -> Sequence[Mapping[str, Any]]:
    """The tools that the model is shown. Raises DialectError where a call would have to be forced."""
    choice = call.sampling.get("tool_choice", "auto")
    if choice == "none":
        return ()  # a model that is shown tools may call one
    if choice != "auto":
        raise DialectError(
            400,
            "tool_choice: a call cannot be forced where prompts go out as tokens: leave it out, or take auto or none",
            code="unsupported_value",
            param="tool_choice",
        )
    return call.tools

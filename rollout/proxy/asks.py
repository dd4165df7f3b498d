"""What a request asks, as what the rollout's session is asked: whose sampling holds, and what cannot be done.

What it asks of its answer's form must hold on each turn: see `rollout.play.form`.
"""

from __future__ import annotations

from rollout.config import EngineConfig
from rollout.dialects.headers import Caller
from rollout.dialects.types import Call, DialectError
from rollout.play.form import FormRefused, settle_form
from rollout.play.session import Ask
from rollout.transport import ServerInfo

#: What a request asks of the answer's form: it holds whoever's sampling is used, for the program reads that form.
_FORM = frozenset(
    {
        *("stop", "response_format", "structured_outputs", "tool_choice"),
        *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    }
)


def ask_of(call: Call, caller: Caller, config: EngineConfig, server: ServerInfo) -> Ask:
    """What the session is asked. Raises DialectError for what this server cannot do."""
    try:
        sampling, tools = settle_form(call.sampling, call.tools, config, server)
    except FormRefused as refused:
        raise DialectError(400, str(refused), code="unsupported_value", param=refused.param) from None
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

"""What a request asks, as what the session is asked."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rollout.config import EngineConfig
from rollout.dialects.headers import Caller
from rollout.dialects.types import Call, DialectError
from rollout.play.session import Ask
from rollout.proxy.asks import ask_of
from rollout.transport import ServerInfo

TOOLS = ({"type": "function", "function": {"name": "add"}},)
SERVER = ServerInfo(dialect="vllm", model="m", models=["m"], token_route="/inference/v1/generate")
SCHEMA = {"type": "object", "properties": {"answer": {"type": "number"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


def asked(server: ServerInfo = SERVER, call: dict[str, Any] | None = None, **config: Any) -> Ask:
    """What the session is asked for a call with these fields."""
    return ask_of(Call(model="m", messages=[], **(call or {})), Caller(agent="judge"), EngineConfig(**config), server)


def test_the_runs_sampling_holds() -> None:
    """What the program asks for is left out, but for the form that it reads; its own cap holds beside the run's."""
    call = {"sampling": {"temperature": 0.1, "seed": 4, "stop": ["."]}, "max_tokens": 32_000}
    ask = asked(call=call, max_tokens=512)
    assert (ask.sampling, ask.max_tokens, ask.agent) == ({"stop": ["."]}, 512, "judge")
    assert asked(call={"max_tokens": 16}, max_tokens=512).max_tokens == 16
    assert asked(call=call).max_tokens == 32_000


def test_the_agents_sampling_is_kept_where_that_is_wanted() -> None:
    """All of it, and how hard it is to think."""
    call = {"sampling": {"temperature": 0.1}, "max_tokens": 64, "effort": "low"}
    ask = asked(call=call, max_tokens=16, agent_sampling="keep", template_args={"a": 1})
    assert (ask.sampling, ask.max_tokens) == ({"temperature": 0.1}, 64)
    assert ask.template_args == {"a": 1, "reasoning_effort": "low"}


def test_template_arguments_of_the_run_stand_where_the_request_has_none() -> None:
    """The very same, so that its conversations share their root."""
    assert asked(template_args={"a": 1}).template_args is None


def test_a_choice_of_tools_is_done_or_refused() -> None:
    """auto says nothing, none shows no tools, and a call cannot be forced on ids."""
    call = {"tools": TOOLS, "sampling": {"tool_choice": "auto", "parallel_tool_calls": False}}
    assert (asked(call=call).tools, asked(call=call).sampling) == (TOOLS, {})
    assert asked(call={"tools": TOOLS, "sampling": {"tool_choice": "none"}}).tools == ()
    with pytest.raises(DialectError, match="tool_choice"):
        asked(call={"tools": TOOLS, "sampling": {"tool_choice": "required"}})
    forced = asked(call={"tools": TOOLS, "sampling": {"tool_choice": "required"}}, mode="mito")
    assert forced.sampling == {"tool_choice": "required"}


def test_a_format_is_asked_for_as_both_routes_have_it_or_refused() -> None:
    """vLLM's structured outputs on ids; the server's own where prompts stay messages."""
    assert asked(call={"sampling": {"response_format": FORMAT}}).sampling == {"structured_outputs": {"json": SCHEMA}}
    only_json = asked(call={"sampling": {"response_format": {"type": "json_object"}}})
    assert only_json.sampling == {"structured_outputs": {"json_object": True}}
    assert asked(call={"sampling": {"response_format": {"type": "text"}}}).sampling == {}
    assert asked(call={"sampling": {"response_format": FORMAT}}, mode="mito").sampling == {"response_format": FORMAT}
    other = msgspec.structs.replace(SERVER, dialect="dynamo")
    with pytest.raises(DialectError, match=r"response_format: this server \(dynamo\)"):
        asked(other, {"sampling": {"response_format": FORMAT}})
    with pytest.raises(DialectError, match="with a schema"):
        asked(call={"sampling": {"response_format": {"type": "json_schema"}}})

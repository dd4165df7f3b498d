"""What is asked of an answer's form holds on each turn, whichever route that takes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rollout import EngineConfig, Outcome, Task, user
from rollout.agent import Model
from rollout.errors import ConfigError, MessageError
from rollout.play.form import FormRefused, settle_config, settle_form
from rollout.transport import ServerInfo
from tests.rollout.play.test_driving import play

VLLM = ServerInfo(dialect="vllm", model="m", models=["m"], token_route="/inference/v1/generate")
SGLANG = msgspec.structs.replace(VLLM, dialect="sglang", token_route="/generate")
TOOLS = ({"type": "function", "function": {"name": "add"}},)
FORCED: dict[str, Any] = {"type": "function", "function": {"name": "add"}}


def settled(server: ServerInfo = VLLM, mode: Any = "tito", **sampling: Any) -> tuple[dict[str, Any], Any]:
    return settle_form(sampling, TOOLS, EngineConfig(mode=mode), server)


def test_other_parameters_are_left_as_they_are() -> None:
    """A temperature is no form."""
    assert settled(temperature=0.5, stop=["."]) == ({"temperature": 0.5, "stop": ["."]}, TOOLS)


def test_a_format_is_asked_of_both_routes_by_one_name() -> None:
    """Of vLLM, as structured output; of a server whose route of ids takes none it is refused, but for plain text."""
    assert settled(response_format={"type": "json_object"})[0] == {"structured_outputs": {"json_object": True}}
    assert settled(SGLANG, response_format={"type": "text"})[0] == {}
    for server, wanted in ((SGLANG, {"type": "json_object"}), (VLLM, {"type": "yaml"}), (VLLM, "json")):
        with pytest.raises(FormRefused, match="response_format"):
            settled(server, response_format=wanted)


def test_where_all_goes_as_messages_the_server_does_it() -> None:
    """Every turn takes one route then."""
    asked: dict[str, Any] = {"tool_choice": "required", "response_format": {"type": "json_object"}}
    assert settled(mode="mito", **asked) == (asked, TOOLS)
    assert settled(msgspec.structs.replace(VLLM, token_route=None), **asked) == (asked, TOOLS)


@pytest.mark.parametrize("choice", ["required", FORCED])
async def test_an_agent_cannot_force_a_call_on_some_of_its_turns(choice: Any) -> None:
    """It is told on the first, where the server might have done it, and nothing is sent."""

    async def run(task: Task, model: Model) -> Outcome:
        with pytest.raises(MessageError, match="tool_choice: a call cannot be forced"):
            await model.chat([user("a")], tools=TOOLS, tool_choice=choice)
        return Outcome()

    assert (await play(run)).turns == []


async def test_an_agent_that_wants_no_call_shows_no_tools() -> None:
    """On every route alike; a wish for one call at a time is left out."""

    async def run(task: Task, model: Model) -> Outcome:
        await model.chat([user("a")], tools=TOOLS, tool_choice="none", parallel_tool_calls=False)
        return Outcome()

    (root,) = (await play(run)).roots
    assert not root.tools


@pytest.mark.parametrize("sampling", [{"tool_choice": "required"}, {"tool_choice": "none"}, {"response_format": "x"}])
def test_the_runs_own_sampling_is_checked_before_anything_is_played(sampling: dict[str, Any]) -> None:
    """Else it would hold for the first turn of each rollout alone."""
    with pytest.raises(ConfigError, match=f"sampling: {min(sampling)}"):
        settle_config(EngineConfig(sampling=sampling), VLLM)


def test_the_runs_own_format_is_asked_of_both_routes() -> None:
    """As an agent's is; a configuration without any is the very same."""
    config = EngineConfig(sampling={"response_format": {"type": "json_object"}, "seed": 1})
    assert settle_config(config, VLLM).sampling == {"seed": 1, "structured_outputs": {"json_object": True}}
    assert settle_config(plain := EngineConfig(sampling={"seed": 1}), VLLM) is plain

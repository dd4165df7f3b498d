"""Case seams/e10: what a tool turn costs where each call has a new id."""

from __future__ import annotations

from typing import Any

from rollout.chat.messages import Function, Message, ToolCall, tool
from rollout.codec.local import load_codec
from rollout.codec.types import Bridged, Previous, make_context
from rollout.probe.shapes import TOOLS
from transports.embedded import MODEL_DIR


def test_a_tool_turn_with_a_new_call_id_costs_what_one_with_a_known_id_does() -> None:
    """The family is asked as often for 100 ids that are new as for one id a hundred times, and nothing more is kept."""
    asked = {}
    kept = {}
    for name, ids in (("one", ["call00000"] * 100), ("new", [f"call_{at:05x}" for at in range(100)])):
        lane = load_codec(str(MODEL_DIR), renderer="qwen3")._here
        renderer: Any = lane.renderer
        calls = _counted(renderer)
        context = make_context(TOOLS, {})
        prompt = lane.render([Message("user", "hello " * 200)], context)
        bridges = set()
        for call_id in ids:
            call = ToolCall(function=Function("add", '{"a": 1}'), id=call_id)
            said = Message("assistant", "I add.", tool_calls=(call,))
            sampled = [*renderer._tokenizer.plain_ids("I add."), lane.stop_token_ids[0]]
            previous = Previous(prompt_ids=prompt, completion_ids=sampled, message=said)
            found = lane.extend(previous, [tool("wind and rain " * 10, call=call)], context)
            assert isinstance(found, Bridged)
            bridges.add(tuple(found.ids))
        assert len(bridges) == 1
        asked[name] = len(calls)
        kept[name] = {memo: len(getattr(renderer, memo)) for memo in ("_unlike", "_needs_all", "_seen", "_patterns")}
    assert asked["new"] == asked["one"] < 100
    assert kept["new"] == kept["one"]


def _counted(renderer: Any) -> list[None]:
    """A list that grows whenever the family is asked for a bridge."""
    calls: list[None] = []
    original = renderer._bridge

    def counting(*args: Any) -> Any:
        calls.append(None)
        return original(*args)

    renderer._bridge = counting
    return calls

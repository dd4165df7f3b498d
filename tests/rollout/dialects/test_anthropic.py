"""Anthropic Messages, there and back, as Claude Code sends them, and as the anthropic SDK parses them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.messages import Message
from rollout.dialects.anthropic import Anthropic
from rollout.dialects.memory import Memory
from rollout.dialects.types import CONTEXT_LENGTH, DialectError
from tests.rollout.dialects.kit import ADD, Played, answers, anthropic_client, call_of, read, said

TOOLS = [{"name": "add", "description": "Adds.", "input_schema": ADD["parameters"]}]
ANSWER = Message("assistant", " It is ", "17 * 3", (call_of("add", '{"a": 1,  "b": 2.0}'), call_of("add", "{}", "c2")))
MARK = {"type": "ephemeral"}


def conversation(*more: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 32_000, "messages": [{"role": "user", "content": "hi"}, *more], **fields}


@pytest.mark.slow
@given(answers(), st.sampled_from(["verbatim", "no thinking", "signature only", "marked"]))
def test_an_answer_that_comes_back_is_what_the_model_said(answer: Message, kept: str) -> None:
    """With its thinking or without, with a cache mark or without, it is the very object."""
    dialect, memory = Anthropic(), Memory()
    call = read(dialect, conversation(tools=TOOLS), memory)
    blocks = msgspec.json.decode(dialect.body(said(answer), call, memory))["content"]
    results = [
        {"type": "tool_result", "tool_use_id": each["id"], "content": "4"}
        for each in blocks
        if each["type"] == "tool_use"
    ]
    if kept == "no thinking":
        blocks = [block for block in blocks if block["type"] != "thinking"]
    if kept == "signature only" and blocks and blocks[0]["type"] == "thinking":
        blocks[0]["thinking"] = ""
    if kept == "marked" and blocks:
        blocks[-1]["cache_control"] = MARK
    said_again = {"role": "assistant", "content": blocks}
    body = conversation(said_again, {"role": "user", "content": [*results, {"type": "text", "text": "go"}]})
    again = read(dialect, {**body, "tools": TOOLS}, memory)
    assert again.messages[0] is call.messages[0]
    assert again.messages[1] is answer
    assert [m.tool_call_id for m in again.messages[2:-1]] == [each.id for each in answer.tool_calls]
    assert again.messages[-1] == Message("user", "go")
    assert again.tools is call.tools


@pytest.mark.parametrize("stream", [False, True])
def test_the_sdk_reads_an_answer(stream: bool) -> None:
    """The anthropic SDK gives thinking, text, each call's input, the reason and the usage; sent back, it is known."""
    played = Played(Anthropic(), lambda call: said(ANSWER, cached_tokens=16))
    client = anthropic_client(played)
    asked: Any = {"model": "claude-x", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
    if stream:
        with client.messages.stream(**asked, tools=TOOLS) as events:
            message = events.get_final_message()
    else:
        message = client.messages.create(**asked, tools=TOOLS)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.content[0].thinking == "17 * 3"
    assert message.content[1].text == " It is "
    assert message.content[2].input == {"a": 1, "b": 2.0}
    assert (message.model, message.stop_reason) == ("claude-x", "tool_use")
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (4, 16)
    assert message.usage.output_tokens == 7
    asked["messages"] += [{"role": "assistant", "content": message.content}, {"role": "user", "content": "go"}]
    client.messages.create(**asked, tools=TOOLS)
    assert played.calls[-1].messages[1] is ANSWER


@pytest.mark.parametrize(
    ("answer", "more", "reason"),
    [
        (Message("assistant", "4"), {}, "end_turn"),
        (Message("assistant", "4"), {"finish_reason": "length"}, "max_tokens"),
        (Message("assistant", "4"), {"stop_sequence": "\n"}, "stop_sequence"),
        (Message("assistant", None), {}, "end_turn"),
    ],
)
def test_why_an_answer_ended(answer: Message, more: dict[str, Any], reason: str) -> None:
    """Each reason has Anthropic's word, streamed too."""
    client = anthropic_client(Played(Anthropic(), lambda call: said(answer, **more)))
    with client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]) as events:
        assert events.get_final_message().stop_reason == reason


SYSTEM: list[dict[str, Any]] = [
    {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197; cch=00f3a;"},
    {"type": "text", "text": "You are Claude Code.", "cache_control": MARK},
    {"type": "text", "text": "Be brief.", "cache_control": MARK},
]


def claude_code(messages: list[dict[str, Any]], billing: str = "00f3a") -> dict[str, Any]:
    """A request as Claude Code writes it for a model that it does not know."""
    system = [{**SYSTEM[0], "text": SYSTEM[0]["text"].replace("00f3a", billing)}, *SYSTEM[1:]]
    return {
        "model": "our-model",
        "messages": messages,
        "system": system,
        "tools": [{**tool, "eager_input_streaming": True} for tool in TOOLS],
        "metadata": {"user_id": json.dumps({"device_id": "d", "account_uuid": "", "session_id": "s-1"})},
        "max_tokens": 32_000,
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
        "stream": True,
    }


def test_claude_code_goes_on_from_what_it_had() -> None:
    """Moved cache marks, another billing hash, late system messages: turn 2 starts with turn 1's objects."""
    dialect, memory = Anthropic(), Memory()
    reminder, go = {"type": "text", "text": "<system-reminder>"}, {"type": "text", "text": "go"}
    first = {"role": "user", "content": [reminder, go]}
    marked = {"role": "user", "content": [reminder, {**go, "cache_control": MARK}]}
    late = {"role": "system", "content": "Today is Monday."}
    one = read(dialect, claude_code([marked, late]), memory)
    blocks = msgspec.json.decode(dialect.body(said(ANSWER), one, memory))["content"]
    results = [
        {"type": "tool_result", "tool_use_id": blocks[2]["id"], "content": "3", "is_error": False},
        {
            "type": "tool_result",
            "tool_use_id": blocks[3]["id"],
            "content": [{"type": "text", "text": "no numbers"}],
            "is_error": True,
            "cache_control": MARK,
        },
    ]
    turn = [{"role": "assistant", "content": blocks}, {"role": "user", "content": results}, late]
    two = read(dialect, claude_code([first, late, *turn], billing="ffff0"), memory)
    assert all(a is b for a, b in zip([*one.messages, ANSWER], two.messages, strict=False))
    assert two.messages[-3:] == [
        Message("tool", "3", tool_call_id="call00000"),
        Message("tool", "Error: no numbers", tool_call_id="c2"),
        Message("system", "Today is Monday."),
    ]
    assert one.messages[0] == Message("system", "You are Claude Code.\nBe brief.")
    assert (two.session, two.effort, two.max_tokens, two.left_out) == ("s-1", "medium", 32_000, ())


@pytest.mark.parametrize(
    "system",
    [
        "x-anthropic-billing-header: cc_version=1; cch=1;\nYou are brief.\nSay little.",
        [{"type": "text", "text": "x-anthropic-billing-header: cch=2;\n\nYou are brief.\nSay little."}],
        [
            {"type": "text", "text": "x-anthropic-billing-header: cch=3;"},
            {"type": "text", "text": "You are brief.\nSay little."},
        ],
        "You are brief.\nSay little.",
    ],
)
def test_a_billing_preamble_is_left_out_and_nothing_else(system: Any) -> None:
    """Whether it is a block of its own, or what stands between joined it with the prompt."""
    assert read(Anthropic(), conversation(system=system)).messages[0] == Message(
        "system", "You are brief.\nSay little."
    )


def test_images_are_parts_of_a_multimodal_message() -> None:
    """Beside text, and in a tool's result."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}
    call = read(
        Anthropic(),
        conversation(
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "shot", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [image]}, image]},
        ),
    )
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
    assert call.messages[2:] == [Message("tool", (part,), tool_call_id="t"), Message("user", (part,))]
    assert all(message.is_multimodal for message in call.messages[2:])


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "{"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]}, "messages[0].content[0]"),
        ({"tool_choice": {"type": "tool", "name": "nope"}}, "tool_choice"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"system": [{"type": "image"}]}, "system[0]"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], place: str) -> None:
    """The error says which field, in Anthropic's form."""
    with pytest.raises(DialectError) as refused:
        read(Anthropic(), conversation(**fields))
    assert (refused.value.status, refused.value.param) == (400, place)
    error = json.loads(Anthropic().error(refused.value))
    assert error["error"]["type"] == "invalid_request_error"
    assert place in error["error"]["message"]


def test_a_prompt_that_is_too_long_is_said_as_claude_code_knows_it() -> None:
    """It compacts its conversation on these words."""
    error = DialectError(400, "9000 tokens > 8192 maximum", code=CONTEXT_LENGTH)
    assert b"prompt is too long: 9000 tokens > 8192 maximum" in Anthropic().error(error)


def test_sampling_is_told_by_openai_names() -> None:
    """Stop sequences, the tool choice and a format for the answer."""
    call = read(
        Anthropic(),
        conversation(
            tools=TOOLS,
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
            stop_sequences=["\n"],
            temperature=1,
            output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}},
        ),
    )
    assert call.sampling == {
        "temperature": 1.0,
        "stop": ["\n"],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
    }


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 429, 500, 503])
def test_the_sdk_raises_what_an_error_is(status: int) -> None:
    """Each status is the SDK's own class of error, with our text."""
    played = Played(Anthropic(), lambda call: DialectError(status, "no such rollout"))
    with pytest.raises(Exception, match="no such rollout") as raised:
        anthropic_client(played).messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "hi"}])
    assert getattr(raised.value, "status_code", None) == status


def test_a_stream_that_fails_raises() -> None:
    """A fault behind the first frame is an error of the client's, not an answer that ends early."""

    class Failing(Anthropic):
        def events(self, *args: Any) -> Any:
            frames = list(super().events(*args))
            return iter([*frames[:3], self.error_event(DialectError(503, "the server is gone"))])

    client = anthropic_client(Played(Failing(), lambda call: said(ANSWER)))
    asked: Any = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(Exception, match="the server is gone"), client.messages.stream(**asked) as events:
        events.get_final_message()


def test_count_tokens_is_answered() -> None:
    """The request is read as any other; the answer is what the SDK reads."""
    call = read(Anthropic(), {"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    assert (call.max_tokens, len(call.messages)) == (None, 1)
    assert json.loads(Anthropic().count_body(7)) == {"input_tokens": 7}

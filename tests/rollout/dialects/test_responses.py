"""OpenAI Responses, there and back, as Codex and openai-agents send them, and as the openai SDK parses them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.messages import Message
from rollout.dialects import sse
from rollout.dialects.memory import Memory, MemoryLimits
from rollout.dialects.responses import Responses
from rollout.dialects.types import DialectError
from tests.rollout.dialects.kit import ADD, Played, answers, call_of, openai_client, read, said

TOOLS: list[dict[str, Any]] = [{"type": "function", **ADD, "strict": False}]
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Patches.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
}
FILES = {"type": "namespace", "name": "mcp__files", "description": "Files.", "tools": [{"type": "function", **ADD}]}
ANSWER = Message("assistant", " It is ", "17 * 3", (call_of("add", '{"a": 1,  "b": 2.0}'), call_of("add", "{}", "c2")))
USER = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}


def request(*more: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "m", "input": [USER, *more], "store": False, **fields}


def outputs(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output"}
    return [
        {"type": kinds[item["type"]], "call_id": item["call_id"], "output": "4"}
        for item in items
        if item["type"] in kinds
    ]


def without_ids(item: dict[str, Any]) -> dict[str, Any]:
    """As Codex sends an item: its own ids are dropped, those of calls and what is sealed are kept."""
    return {name: value for name, value in item.items() if name not in ("id", "status")}


@given(answers(), st.sampled_from(["verbatim", "no ids", "no reasoning", "sealed only", "references"]))
def test_an_answer_that_comes_back_is_what_the_model_said(answer: Message, kept: str) -> None:
    """Item by item, however a client keeps them, it is the very object."""
    dialect, memory = Responses(), Memory()
    call = read(dialect, request(tools=TOOLS), memory)
    items = msgspec.json.decode(dialect.body(said(answer), call, memory))["output"]
    sent = outputs(items)
    match kept:
        case "no ids":
            items = list(map(without_ids, items))
        case "no reasoning":
            items = [item for item in items if item["type"] != "reasoning"]
        case "sealed only":
            items = [{**item, "summary": []} if item["type"] == "reasoning" else item for item in items]
        case "references":
            items = [{"type": "item_reference", "id": item["id"]} for item in items]
    again = read(dialect, request(*items, *sent, tools=TOOLS), memory)
    assert again.messages[0] is call.messages[0]
    assert again.messages[1] is answer
    assert [m.tool_call_id for m in again.messages[2:]] == [each.id for each in answer.tool_calls]
    assert again.tools is call.tools


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_the_sdk_reads_an_answer(stream: bool) -> None:
    """The openai SDK gives reasoning, text, each call, the usage; what it sends back is known."""
    played = Played(Responses(), lambda call: said(ANSWER, cached_tokens=16))
    client = openai_client(played)
    asked: Any = {"model": "m", "input": [USER], "tools": TOOLS}
    response: Any
    if stream:
        with client.responses.stream(**asked) as events:
            kinds = [event.type for event in events]
            response = events.get_final_response()
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert "response.function_call_arguments.done" in kinds
    else:
        response = client.responses.create(**asked)
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call"]
    assert response.output_text == " It is "
    assert response.output[2].arguments == '{"a": 1,  "b": 2.0}'
    assert (response.status, response.usage.total_tokens) == ("completed", 27)
    assert response.usage.input_tokens_details.cached_tokens == 16
    back = [item.model_dump(exclude_unset=True, exclude={"parsed_arguments"}) for item in response.output]
    client.responses.create(model="m", input=[*asked["input"], *back], tools=TOOLS)  # type: ignore[arg-type]
    assert played.calls[-1].messages[1] is ANSWER


def test_an_answer_that_was_cut_is_incomplete() -> None:
    """By its status and the reason, streamed too."""
    played = Played(Responses(), lambda call: said(Message("assistant", "4"), finish_reason="length"))
    client = openai_client(played)
    with client.responses.stream(model="m", input="hi") as events:
        for event in events:
            last = event
    assert last.type == "response.incomplete"
    whole = client.responses.create(model="m", input="hi")
    assert whole.status == "incomplete"
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"


def test_codex_tools_are_functions_and_are_called_by_their_own_names() -> None:
    """A custom tool has one text, a namespaced one both names; a hosted search is left out and named."""
    dialect, memory = Responses(), Memory()
    tools = [*TOOLS, PATCH, FILES, {"type": "web_search", "external_web_access": False}]
    call = read(dialect, request(tools=tools), memory)
    assert [tool["function"]["name"] for tool in call.tools] == ["add", "apply_patch", "mcp__files__add"]
    assert call.left_out == ("the tool web_search",)
    assert "lark grammar" in call.tools[1]["function"]["description"]
    answer = Message(
        "assistant",
        None,
        "hm",
        (call_of("apply_patch", '{"input": "*** Begin"}', "c0"), call_of("mcp__files__add", '{"a": 1}', "c1")),
    )
    items = msgspec.json.decode(dialect.body(said(answer), call, memory))["output"]
    assert [(item["type"], item.get("name"), item.get("namespace")) for item in items[1:]] == [
        ("custom_tool_call", "apply_patch", None),
        ("function_call", "add", "mcp__files"),
    ]
    assert items[1]["input"] == "*** Begin"
    again = read(dialect, request(*map(without_ids, items), *outputs(items), tools=tools), memory)
    assert again.messages[1] is answer
    assert [message.tool_call_id for message in again.messages[2:]] == ["c0", "c1"]


def test_a_custom_call_with_other_arguments_is_known_again() -> None:
    """A model that gave a custom tool no `input` is shown as it wrote, and is the same object when it comes back."""
    dialect, memory = Responses(), Memory()
    call = read(dialect, request(tools=[PATCH]), memory)
    answer = Message("assistant", tool_calls=(call_of("apply_patch", '{"patch": 1}', "c0"),))
    items = msgspec.json.decode(dialect.body(said(answer), call, memory))["output"]
    assert items[0]["input"] == '{"patch": 1}'
    assert read(dialect, request(without_ids(items[0]), tools=[PATCH]), memory).messages[1] is answer


def test_codex_goes_on_from_what_it_had() -> None:
    """Developer messages, the whole history each time, no item ids: turn 3 starts with turn 2's objects."""
    dialect, memory = Responses(), Memory()
    developer = {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "You are Codex."}]}
    history: list[dict[str, Any]] = [developer, USER]
    seen: list[Message] = []
    for turn in range(3):
        body = {
            "model": "our-model",
            "instructions": "",
            "input": history,
            "tools": [*TOOLS, PATCH],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "reasoning": {"effort": "medium", "summary": "auto"},
            "store": False,
            "stream": True,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "t-1",
            "client_metadata": {"x": "y"},
        }
        call = read(dialect, body, memory)
        assert all(a is b for a, b in zip(seen, call.messages, strict=False))
        assert call.effort == "medium"
        answer = Message("assistant", None, f"step {turn}", (call_of("add", "{}", f"c{turn}"),))
        seen = [*call.messages, answer]
        frames = b"".join(dialect.events(said(answer, f"turn{turn}"), call, memory)).decode().split("\n\n")
        done = [json.loads(frame.partition("data: ")[2]) for frame in frames if "output_item.done" in frame]
        items = [without_ids(event["item"]) for event in done]
        history = [*history, *items, *outputs(items)]
    assert [message.role for message in seen] == ["developer", "user", *["assistant", "tool"] * 2, "assistant"]


def test_a_response_goes_on_from_an_earlier_one() -> None:
    """`previous_response_id` is the conversation that it ended, the same objects; its instructions are not."""
    dialect, memory = Responses(), Memory()
    one = read(dialect, request(instructions="Add."), memory)
    response = json.loads(dialect.body(said(ANSWER), one, memory))
    follow = {"model": "m", "input": outputs(response["output"]), "previous_response_id": response["id"]}
    same = read(dialect, {**follow, "instructions": "Add."}, memory)
    assert [a is b for a, b in zip([*one.messages, ANSWER], same.messages, strict=False)] == [True] * 3
    assert [message.tool_call_id for message in same.messages[3:]] == ["call00000", "c2"]
    other = read(dialect, {**follow, "instructions": "Subtract."}, memory)
    assert other.messages[0] == Message("system", "Subtract.")
    assert other.messages[2] is ANSWER
    assert read(dialect, follow, memory).messages[0] is one.messages[1]
    third = json.loads(dialect.body(said(Message("assistant", "3"), "two"), same, memory))
    assert third["previous_response_id"] == response["id"]
    last = read(dialect, {"model": "m", "input": "thanks", "previous_response_id": third["id"]}, memory)
    assert [message.role for message in last.messages] == ["user", "assistant", "tool", "tool", "assistant", "user"]


def test_a_response_that_was_forgotten_is_said_to_be() -> None:
    """404, with the remedy."""
    dialect, memory = Responses(), Memory(MemoryLimits(answers=1))
    call = read(dialect, request(), memory)
    ids = [json.loads(dialect.body(said(ANSWER, f"a{at}"), call, memory))["id"] for at in range(20)]
    with pytest.raises(DialectError, match="send the whole conversation") as refused:
        read(dialect, {"model": "m", "input": "go", "previous_response_id": ids[0]}, memory)
    assert (refused.value.status, refused.value.code) == (404, "previous_response_not_found")


def test_openai_agents_go_on_with_item_ids() -> None:
    """Instructions on every request, items of the answer sent back with their ids."""
    played = Played(Responses(), lambda call: said(ANSWER, f"r{len(call.messages)}"))
    client = openai_client(played)
    history: list[Any] = [{"role": "user", "content": "hi"}]
    for _ in range(3):
        response = client.responses.create(model="m", input=history, instructions="Add.", tools=TOOLS)  # type: ignore[arg-type]
        items = [item.model_dump(exclude_unset=True) for item in response.output]
        history += [*items, *outputs(items)]
    assert [message.role for message in played.calls[-1].messages] == [
        "system",
        "user",
        *["assistant", "tool", "tool"] * 2,
    ]
    assert all(message is ANSWER for message in played.calls[-1].messages if message.role == "assistant")


def test_reasoning_that_another_model_sealed_says_nothing() -> None:
    """It is no message of its own, and what follows it is read as it came."""
    foreign = {"type": "reasoning", "id": "rs_x", "summary": [], "encrypted_content": "gAAA"}
    call = read(Responses(), request(foreign, USER))
    assert [message.role for message in call.messages] == ["user", "user"]
    spoken = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "4"}]}
    call = read(Responses(), request(foreign, spoken))
    assert call.messages[1] == Message("assistant", "4")


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools[0].type"),
        ({"tools": [*TOOLS, *TOOLS]}, "tools[1].name"),
        ({"input": []}, "input"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call_output", "output": "4"}]}, "input[0].call_id"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"max_output_tokens": "many"}, "max_output_tokens"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], place: str) -> None:
    """The error says which field, in OpenAI's form."""
    with pytest.raises(DialectError) as refused:
        read(Responses(), request(**fields))
    assert refused.value.param == place
    assert json.loads(Responses().error(refused.value))["error"]["param"] == place


def test_sampling_is_told_by_the_names_of_chat_completions() -> None:
    """The cap, a format for the answer, and a choice of one tool."""
    call = read(
        Responses(),
        request(
            tools=[*TOOLS, FILES],
            tool_choice={"type": "function", "name": "add", "namespace": "mcp__files"},
            temperature=0.5,
            max_output_tokens=9,
            text={"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True}},
        ),
    )
    assert call.max_tokens == 9
    assert call.sampling == {
        "temperature": 0.5,
        "tool_choice": {"type": "function", "function": {"name": "mcp__files__add"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}},
    }


def test_a_stream_that_fails_says_so() -> None:
    """What fails while keepalives are sent ends in `response.failed` with the reason, as OpenAI's own streams do."""

    class Failing(Responses):
        def events(self, *args: Any) -> Any:
            return iter([sse.KEEPALIVE, self.error_event(DialectError(503, "the server is gone"))])

    client = openai_client(Played(Failing(), lambda call: said(ANSWER)))
    events: Any = list(client.responses.create(model="m", input="hi", stream=True))
    assert [(event.type, event.sequence_number) for event in events] == [
        ("response.created", 0),
        ("response.failed", 1),
    ]
    assert events[1].response.error.message == "the server is gone"
    assert events[0].response.id == events[1].response.id
    with client.responses.stream(model="m", input="hi") as stream:  # which takes no event before one that has begun
        helped: Any = list(stream)
    assert [event.type for event in helped] == ["response.created", "response.failed"]
    assert helped[1].response.id not in ("", events[1].response.id)

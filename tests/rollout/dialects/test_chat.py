"""OpenAI chat completions, there and back, and as the openai SDK parses them."""

from __future__ import annotations

from typing import Any

import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.messages import Message
from rollout.dialects import sse
from rollout.dialects.chat import Chat
from rollout.dialects.memory import Memory
from rollout.dialects.types import DialectError
from tests.rollout.dialects.kit import ADD, Played, answers, call_of, openai_client, read, said

TOOLS = [{"type": "function", "function": ADD}]
ANSWER = Message("assistant", " It is ", "17 * 3", (call_of("add", '{"a": 1,  "b": 2}'), call_of("add", "{}", "c2")))


def conversation(*more: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}, *more], **fields}


@given(answers(), st.booleans(), st.booleans())
def test_an_answer_that_comes_back_is_what_the_model_said(answer: Message, streamed: bool, drops: bool) -> None:
    """Verbatim or without its reasoning, it is the very object, and a tool's result answers the model's own id."""
    chat, memory = Chat(), Memory()
    call = read(chat, conversation(tools=TOOLS), memory)
    if streamed:
        list(chat.events(said(answer), call, memory))
    back = msgspec.json.decode(chat.body(said(answer), call, memory))["choices"][0]["message"]
    if drops:
        back.pop("reasoning_content", None)
    results = [{"role": "tool", "tool_call_id": each["id"], "content": "4"} for each in back.get("tool_calls", ())]
    again = read(chat, conversation(back, *results, tools=TOOLS), memory)
    assert again.messages[0] is call.messages[0]
    assert again.messages[1] is answer
    assert [m.tool_call_id for m in again.messages[2:]] == [each.id for each in answer.tool_calls]
    assert again.tools is call.tools
    assert again.restored == (drops and bool(answer.reasoning_content))


@pytest.mark.parametrize("stream", [False, True])
def test_the_sdk_reads_an_answer(stream: bool) -> None:
    """The openai SDK's parser gives the text, each call with its arguments, the reason and the usage."""
    played = Played(Chat(), lambda call: said(ANSWER, cached_tokens=16))
    client = openai_client(played)
    asked: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}
    if stream:
        with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as events:
            for _ in events:
                pass
            completion = events.get_final_completion()
    else:
        completion = client.chat.completions.create(**asked)
    choice = completion.choices[0]
    assert choice.message.content == " It is "
    assert [c.function.arguments for c in choice.message.tool_calls or ()] == ['{"a": 1,  "b": 2}', "{}"]
    assert choice.finish_reason == "tool_calls"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 27
    back = choice.message.model_dump(exclude_unset=True)
    client.chat.completions.create(model="m", messages=[asked["messages"][0], back], tools=TOOLS)  # type: ignore[list-item, arg-type]
    assert played.calls[-1].messages[-1] is ANSWER


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"n": 2}, "n"),
        ({"n": 0}, "n"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"logprobs": True}, "logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {"user_location": None}}, "web_search_options"),
        ({"temperature": "hot"}, "temperature"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    """A field that would change the answer is never dropped without a word."""
    with pytest.raises(DialectError) as refused:
        read(Chat(), conversation(**fields))
    assert (refused.value.status, refused.value.param) == (400, named)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 429, 500, 503])
def test_the_sdk_raises_what_an_error_is(status: int, stream: bool) -> None:
    """Each status is the SDK's own class of error, with our text, and whether it was to be streamed is no matter."""
    client = openai_client(Played(Chat(), lambda call: DialectError(status, "no such rollout", param="p", code="c")))
    with pytest.raises(openai.APIStatusError, match="no such rollout") as raised:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=stream)
    assert (raised.value.status_code, raised.value.param, raised.value.code) == (status, "p", "c")


def test_a_stream_that_fails_raises() -> None:
    """What fails while keepalives are sent is an error of the client's, not an empty answer."""

    class Failing(Chat):
        def events(self, *args: Any) -> Any:
            return iter([sse.KEEPALIVE, self.error_event(DialectError(503, "the server is gone"))])

    client = openai_client(Played(Failing(), lambda call: said(ANSWER)))
    with pytest.raises(openai.APIError, match="the server is gone"):
        list(client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True))


def test_several_answers_where_the_server_takes_them() -> None:
    """`n` is refused by default; a server that takes it answers as many choices, each streamed by its index."""
    played = Played(Chat(take=["n"]), lambda call: said(ANSWER, others=[said(Message("assistant", "no"), "two")]))
    client = openai_client(played)
    whole = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], n=2)
    assert [choice.message.content for choice in whole.choices] == [" It is ", "no"]
    assert [choice.finish_reason for choice in whole.choices] == ["tool_calls", "stop"]
    with client.chat.completions.stream(model="m", messages=[{"role": "user", "content": "hi"}], n=2) as events:
        for _ in events:
            pass
        streamed = events.get_final_completion()
    assert [choice.message.content for choice in streamed.choices] == [" It is ", "no"]
    assert played.calls[-1].n == 2


def test_mini_swe_agent_goes_on_from_what_it_had() -> None:
    """Through LiteLLM: provider fields, thinking blocks and nulls on what comes back mean nothing."""
    chat, memory = Chat(), Memory()
    history: list[dict[str, Any]] = [{"role": "system", "content": "s"}, {"role": "user", "content": "Mend it."}]
    seen: list[Message] = []
    for turn in range(3):
        call = read(chat, {"model": "openai/m", "messages": history, "tools": TOOLS}, memory)
        assert all(a is b for a, b in zip(seen, call.messages, strict=False))
        answer = Message("assistant", f"THOUGHT {turn}", "hm", (call_of("add", '{"a": 1}'),))
        seen = [*call.messages, answer]
        back = msgspec.json.decode(chat.body(said(answer, f"t{turn}"), call, memory))["choices"][0]["message"]
        back |= {"provider_specific_fields": {"refusal": None}, "function_call": None, "thinking_blocks": []}
        result = {"role": "tool", "content": "<returncode>0</returncode>", "tool_call_id": back["tool_calls"][0]["id"]}
        history = [*history, back, result]
    assert call.max_tokens is None
    assert [message.role for message in seen] == ["system", "user", *["assistant", "tool"] * 2, "assistant"]


def test_what_the_server_alone_knows_is_passed_on() -> None:
    """vLLM's own parameters go on as they came, and what says nothing to a model does not."""
    call = read(
        Chat(),
        conversation(
            guided_regex="a+",
            logit_bias={"5": 1},
            user="u",
            metadata={"a": "b"},
            parallel_tool_calls=True,
            tool_choice="auto",
            max_completion_tokens=5,
            chat_template_kwargs={"enable_thinking": False},
            reasoning_effort="low",
        ),
    )
    assert call.sampling == {"guided_regex": "a+", "logit_bias": {"5": 1.0}}
    assert (call.max_tokens, call.template_args, call.effort) == (5, {"enable_thinking": False}, "low")


def test_a_cache_mark_on_a_tool_is_no_other_tool() -> None:
    """LiteLLM sets it beside the function or in it."""
    memory = Memory()
    mark = {"cache_control": {"type": "ephemeral"}}
    plain = read(Chat(), conversation(tools=TOOLS), memory).tools
    assert read(Chat(), conversation(tools=[{**TOOLS[0], **mark}]), memory).tools is plain
    assert read(Chat(), conversation(tools=[{**TOOLS[0], "function": {**ADD, **mark}}]), memory).tools is plain

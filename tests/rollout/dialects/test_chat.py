"""OpenAI chat completions, there and back, and as the openai SDK parses them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.messages import Message
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

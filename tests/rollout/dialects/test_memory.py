"""What a session remembers: which answer it was, whose call id, and no more than its limits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.kit.agents import ClaudeCode, question
from rollout.chat.messages import Message
from rollout.dialects.anthropic import Anthropic
from rollout.dialects.chat import Chat
from rollout.dialects.memory import Memory, MemoryLimits
from rollout.dialects.responses import Responses
from tests.rollout.dialects.kit import answers, call_of, read, said

CHAT = Chat()
HI = {"role": "user", "content": "hi"}


def answered(memory: Memory, answer: Message, *before: dict[str, Any], identifier: str = "5f0c") -> dict[str, Any]:
    """The answer to a conversation, as a client of chat completions has it."""
    body = CHAT.body(said(answer, identifier), read(CHAT, {"messages": [*before]}, memory), memory)
    message: dict[str, Any] = json.loads(body)["choices"][0]["message"]
    return message


def without_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != "reasoning_content"}


def last(memory: Memory, *messages: dict[str, Any]) -> Message:
    return read(CHAT, {"messages": [*messages]}, memory).messages[-1]


def test_reasoning_is_put_back_only_where_the_model_reasoned() -> None:
    """A judge that is shown the answer "4" is not shown the reasoning that led to it in another conversation."""
    memory, answer = Memory(), Message("assistant", "4", "2 + 2")
    back = without_reasoning(answered(memory, answer, HI))
    assert last(memory, HI, back) is answer
    judged = read(CHAT, {"messages": [{"role": "system", "content": "Judge."}, HI, back, HI]}, memory)
    assert judged.messages[2] == Message("assistant", "4")
    assert judged.restored == 0


def test_equal_answers_are_told_apart_by_their_reasoning() -> None:
    """Of best-of-n's answers that say the same, the one is meant whose reasoning came back; without, the first."""
    memory = Memory()
    several = [Message("assistant", "4", reasoning) for reasoning in ("a", "b", "c")]
    backs = [answered(memory, answer, HI, identifier=answer.reasoning_content or "") for answer in several]
    assert [last(memory, HI, back) for back in backs] == several
    assert last(memory, HI, without_reasoning(backs[2])) is several[0]


def test_equal_call_ids_of_two_branches_are_not_mixed_up() -> None:
    """Both branches' calls have the model's id `call00000`; each result answers its own."""
    memory = Memory()
    several = [Message("assistant", tool_calls=(call_of("add", json.dumps({"a": at})),)) for at in range(2)]
    backs = [answered(memory, answer, HI, identifier=f"b{at}") for at, answer in enumerate(several)]
    wires = [back["tool_calls"][0]["id"] for back in backs]
    assert wires[0] != wires[1]
    for answer, back, wire in zip(several, backs, wires, strict=True):
        call = read(CHAT, {"messages": [HI, back, {"role": "tool", "tool_call_id": wire, "content": "1"}]}, memory)
        assert call.messages[1] is answer
        assert call.messages[2] == Message("tool", "1", tool_call_id="call00000")


@pytest.mark.parametrize(
    "changed",
    [
        {"content": "It is five."},
        {"reasoning_content": "another"},
        {"tool_calls": [{"id": "call_5f0c_0", "type": "function", "function": {"name": "add", "arguments": "[1]"}}]},
        {"tool_calls": None},
    ],
)
def test_a_message_that_the_client_changed_is_its_own(changed: dict[str, Any]) -> None:
    """It is read as it came, but for the model's own ids of calls, since its results are known by them."""
    answer = Message("assistant", "It is four.", "2 + 2", (call_of("add", '{"a": 1}'),))
    memory = Memory()
    back = {**answered(memory, answer, HI), **changed}
    found = last(memory, HI, back)
    assert found is not answer
    assert found == Message.of({**back, "tool_calls": [{**c, "id": "call00000"} for c in back["tool_calls"] or ()]})


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ('{"b":2,"a":1.0}', '{"a": 1, "b": 2}'),
        ('{"a":1e2}', '{"a": 100}'),
        ('{"n":12345678901234567000}', '{"n": 12345678901234567890}'),
        ("{}", ""),
    ],
)
def test_calls_are_compared_as_programs_read_json(theirs: str, ours: str) -> None:
    """Order, spaces, and digits beyond what JavaScript's numbers hold do not make it another call."""
    answer, memory = Message("assistant", tool_calls=(call_of("add", ours),)), Memory()
    back = answered(memory, answer, HI)
    back["tool_calls"][0]["function"]["arguments"] = theirs
    assert last(memory, HI, back) is answer


@pytest.mark.parametrize("arguments", ['{"a": NaN}', "[1, 2]", '"text"', "{broken", '{"n": 1' + "0" * 40 + "}"])
def test_arguments_that_json_objects_do_not_hold_come_back(arguments: str) -> None:
    """Anthropic's `input` is an object: what is none is shown in one, and is the model's own when it comes back."""
    memory, answer = Memory(), Message("assistant", tool_calls=(call_of("add", arguments),))
    asked = {"messages": [HI]}
    content = json.loads(Anthropic().body(said(answer), read(Anthropic(), asked, memory), memory))["content"]
    assert isinstance(content[0]["input"], dict)
    body = {"messages": [HI, {"role": "assistant", "content": content}, HI]}
    assert read(Anthropic(), body, memory).messages[1] is answer


@pytest.mark.slow
@given(st.lists(answers(), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_answers_in_a_row_are_told_apart(said_in_turn: list[Message], ids: bool, reasoned: bool) -> None:
    """A program that asks again without a word between has each answer known, with ids in it or without."""
    dialect, memory = Responses(), Memory()
    spoken = [answer for answer in said_in_turn if answer.text.strip()]
    history: list[dict[str, Any]] = [HI]
    for at, answer in enumerate(spoken):
        call = read(dialect, {"input": history}, memory)
        items = json.loads(dialect.body(said(answer, f"a{at}"), call, memory))["output"]
        items = [item for item in items if reasoned or item["type"] != "reasoning"]
        history += [item if ids else {k: v for k, v in item.items() if k != "id"} for item in items]
    found = read(dialect, {"input": history}, memory).messages[1:]
    assert len(found) == len(spoken)
    assert all(a is b for a, b in zip(found, spoken, strict=True))


def test_an_answer_in_two_messages_is_one() -> None:
    """Anthropic takes messages of one role in a row for one, and so do we: one block a message is the same answer."""
    dialect, memory = Anthropic(), Memory()
    answer = Message("assistant", "I add.", "hm", (call_of("add", "{}"), call_of("add", '{"a": 1}', "c1")))
    call = read(dialect, {"messages": [HI]}, memory)
    content = json.loads(dialect.body(said(answer), call, memory))["content"]
    split = [{"role": "assistant", "content": [block]} for block in content]
    assert read(dialect, {"messages": [HI, *split, HI]}, memory).messages[1] is answer


def test_many_calls_in_one_answer_are_one_answer() -> None:
    """Forty at once, each an item, with no item's id."""
    dialect, memory = Responses(), Memory()
    calls = tuple(call_of("add", json.dumps({"a": at}), f"c{at}") for at in range(40))
    answer = Message("assistant", "I add.", "hm", calls)
    items = json.loads(dialect.body(said(answer), read(dialect, {"input": [HI]}, memory), memory))["output"]
    stripped = [{key: value for key, value in item.items() if key != "id"} for item in items]
    assert read(dialect, {"input": [HI, *stripped]}, memory).messages == [Message("user", "hi"), answer]
    without = [item for item in stripped if item["type"] != "reasoning"]
    assert read(dialect, {"input": [HI, *without]}, memory).messages[1] is answer


def test_one_session_in_three_dialects_is_one_conversation() -> None:
    """The same text is the same object, and an answer of one dialect is known in another."""
    memory, answer = Memory(), Message("assistant", "4", "2 + 2")
    back = answered(memory, answer, HI)
    spoken = {"role": "assistant", "content": back["content"]}
    calls = [
        read(CHAT, {"messages": [HI, back, HI]}, memory),
        read(Anthropic(), {"messages": [HI, spoken, HI]}, memory),
        read(Responses(), {"input": [HI, spoken, HI]}, memory),
    ]
    assert all(call.messages[0] is calls[0].messages[0] and call.messages[1] is answer for call in calls)
    assert len({call.mark for call in calls}) == 1


def test_a_turn_of_claude_codes_size_decodes_only_what_is_new() -> None:
    """Of 200 messages, the last answer, its result, and the message that the cache mark left."""
    dialect, memory, agent = Anthropic(), Memory(), ClaudeCode()
    for turn in range(100):
        before = memory.decoded
        call = read_body(dialect, agent, memory)
        assert memory.decoded - before <= (3 if turn else 2)
        answer = Message("assistant", "I look.", "hm", (call_of("tool00", json.dumps({"command": question(turn)})),))
        agent.answered(json.loads(dialect.body(said(answer, f"t{turn}"), call, memory))["content"])
    again = read_body(dialect, agent, memory)
    assert all(a is b for a, b in zip(call.messages, again.messages, strict=False))
    assert again.previous is not None
    assert again.previous.length == len(again.messages) - 1


def read_body(dialect: Anthropic, agent: ClaudeCode, memory: Memory) -> Any:
    body = agent.body()
    assert len(body) > 60_000
    return dialect.read(body, memory)


def test_memory_is_bounded() -> None:
    """By count and by bytes, whatever a client sends; what is forgotten is read again."""
    memory = Memory(MemoryLimits(messages=50, bytes=20_000, answers=10))
    for at in range(500):
        message = {"role": "user", "content": f"{at} " + "x" * (at * 37 % 900)}
        answered(memory, Message("assistant", f"a{at}"), message, identifier=f"i{at}")
    assert len(memory._items) <= 50
    assert len(memory._messages) <= 50
    assert len(memory._answers) <= 10
    assert len(memory._ids) <= 80
    assert sum(size for half in (memory._items._young, memory._items._old) for _, size in half.values()) <= 20_000
    assert last(memory, {"role": "user", "content": "0 "}) == Message("user", "0 ")


def test_images_count() -> None:
    """What an image weighs is its bytes, in both of the places that remember it."""
    memory = Memory(MemoryLimits(bytes=50_000))
    for at in range(50):
        url = f"data:image/png;base64,{at:04d}" + "A" * 4_000
        part = {"type": "image_url", "image_url": {"url": url}}
        read(CHAT, {"messages": [{"role": "user", "content": [part]}]}, memory)
    assert len(memory._items) <= 12
    assert len(memory._messages) <= 12


def test_what_is_in_use_is_kept() -> None:
    """A conversation that is sent again and again stays known while others pass."""
    memory = Memory(MemoryLimits(messages=40, answers=10))
    kept = {"messages": [HI, {"role": "system", "content": "s"}]}
    read(CHAT, kept, memory)
    for at in range(200):
        read(CHAT, {"messages": [{"role": "user", "content": str(at)}]}, memory)
        before = memory.decoded
        read(CHAT, kept, memory)
        assert memory.decoded == before


def test_a_forgotten_answer_is_read_as_it_came() -> None:
    """Its reasoning is lost with it, and nothing else."""
    memory, answer = Memory(MemoryLimits(answers=2)), Message("assistant", "4", "2 + 2")
    back = answered(memory, answer, HI)
    for at in range(40):
        answered(memory, Message("assistant", str(at)), HI, identifier=f"i{at}")
    assert last(memory, HI, without_reasoning(back)) == Message("assistant", "4")
    assert last(memory, HI, back) == answer


def test_a_conversation_is_kept_once_however_many_answers_it_has() -> None:
    """Each answer holds what was asked since the one before it, so memory grows with what is said."""
    memory, history, held = Memory(), [HI], 0
    for turn in range(50):
        call = read(CHAT, {"messages": history}, memory)
        answer = memory.remember(said(Message("assistant", f"a{turn}"), f"t{turn}"), call, "call")
        held += len(answer.asked)
        assert answer.conversation() == [*call.messages, answer.message]
        history += [{"role": "assistant", "content": f"a{turn}"}, {"role": "user", "content": f"q{turn}"}]
    assert held == 50


@pytest.mark.slow
def test_a_session_ends_quietly_however_long_it_was() -> None:
    """A chain of a hundred thousand answers is let go without exhausting the stack."""
    memory, call = Memory(MemoryLimits(answers=4)), read(CHAT, {"messages": [HI]}, Memory())
    for turn in range(100_000):
        call.previous = memory.remember(said(Message("assistant", "x"), str(turn)), call, "call")
        call.messages = call.messages[:1]
    del memory
    call.previous = None

"""What every dialect does, whatever a client sends."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.messages import Message
from rollout.dialects import sse
from rollout.dialects.anthropic import Anthropic
from rollout.dialects.chat import Chat
from rollout.dialects.dialect import Dialect
from rollout.dialects.memory import Memory
from rollout.dialects.responses import Responses
from rollout.dialects.types import DialectError
from tests.rollout.dialects.kit import (
    ADD,
    Played,
    answers,
    anthropic_client,
    call_of,
    openai_client,
    read,
    said,
    texts,
    values,
)

DIALECTS: list[Dialect] = [Chat(), Anthropic(), Responses()]
PNG = "data:image/png;base64,QUJD"

CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": {"url": PNG}}]},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "r",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "4"},
    ],
    "tools": [{"type": "function", "function": ADD}],
    "tool_choice": {"type": "function", "function": {"name": "add"}},
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 0.5,
    "max_tokens": 9,
    "stop": ["x"],
    "response_format": {"type": "json_object"},
}
ANTHROPIC: dict[str, Any] = {
    "model": "m",
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "t"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "r", "signature": "x"},
                {"type": "tool_use", "id": "c", "name": "add", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "c",
                    "is_error": True,
                    "content": [
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}
                    ],
                }
            ],
        },
    ],
    "tools": [{"name": "add", "description": "d", "input_schema": ADD["parameters"]}],
    "tool_choice": {"type": "tool", "name": "add", "disable_parallel_tool_use": True},
    "max_tokens": 9,
    "metadata": {"user_id": '{"session_id": "s"}'},
    "context_management": {"edits": [{"type": "clear_thinking_20251015"}]},
    "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {}}},
}
RESPONSES: dict[str, Any] = {
    "model": "m",
    "instructions": "i",
    "input": [
        {"role": "developer", "content": [{"type": "input_text", "text": "t"}]},
        {"role": "user", "content": [{"type": "input_image", "image_url": PNG, "detail": "low"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "r"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "t"}], "id": "msg_1"},
        {"type": "function_call", "call_id": "c", "name": "add", "namespace": "n", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "d", "name": "patch", "input": "x"},
        {"type": "function_call_output", "call_id": "c", "output": "4"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": [{"type": "input_text", "text": "4"}]},
    ],
    "tools": [
        {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": "d"}},
        {"type": "namespace", "name": "n", "description": "d", "tools": [{"type": "function", **ADD}]},
    ],
    "tool_choice": {"type": "function", "name": "add", "namespace": "n"},
    "reasoning": {"effort": "low"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
    "max_output_tokens": 9,
}
SAMPLES = list(zip(DIALECTS, [CHAT, ANTHROPIC, RESPONSES], strict=True))


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something lies in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in inner for place in places(item, (*at, key)))][0 if at else 1 :]


@given(st.data(), st.sampled_from(SAMPLES))
def test_a_request_is_read_or_refused(data: st.DataObject, sample: tuple[Dialect, dict[str, Any]]) -> None:
    """Whatever stands at one place of it, a client is answered: with its answer, or with a DialectError."""
    dialect, body = sample[0], copy.deepcopy(sample[1])
    place = data.draw(st.sampled_from(places(body)))
    inner: Any = body
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = data.draw(values | st.just([[]]) | st.just([{}]) | st.just({"type": ["x"]}))
    memory = Memory()
    try:
        call = read(dialect, body, memory)
    except DialectError as refused:
        written = refused.status, json.loads(dialect.error(refused))
        assert written[0] in (400, 404)
        return
    answer = Message("assistant", "4", "r", (call_of("add", "{}"), call_of("patch", '{"input": "x"}', "c1")))
    assert json.loads(dialect.body(said(answer), call, memory))
    assert all(frame.endswith(b"\n\n") for frame in dialect.events(said(answer), call, memory))


@given(st.binary(max_size=30) | st.sampled_from([b"", b"[]", b"{", b"null", b'{"messages":' + b"[" * 100_000]))
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    """Bytes, half a request, a hundred thousand brackets: 400, and no traceback."""
    for dialect in DIALECTS:
        with pytest.raises(DialectError) as refused:
            dialect.read(body, Memory())
        assert refused.value.status == 400


@pytest.mark.parametrize(("dialect", "body"), SAMPLES, ids=lambda one: getattr(one, "name", ""))
def test_half_a_character_is_no_reason_to_refuse(dialect: Dialect, body: dict[str, Any]) -> None:
    """JavaScript writes an emoji that was cut in two as an escape; it comes as U+FFFD, and whole ones as they are."""
    text = json.dumps(body).replace('"t"', '"a\\ud83d \\ud83d\\ude00 \\\\ud83d"')
    call = dialect.read(text.encode(), Memory())
    assert any("a\ufffd \U0001f600 \\ud83d" in message.text for message in call.messages)


@pytest.mark.parametrize(("dialect", "body"), SAMPLES, ids=lambda one: getattr(one, "name", ""))
def test_what_was_seen_is_not_decoded_again(dialect: Dialect, body: dict[str, Any]) -> None:
    """The same bytes give the same objects and decode nothing; so do the same messages in other bytes."""
    memory = Memory()
    one = read(dialect, body, memory)
    decoded = memory.decoded
    two = read(dialect, body, memory)
    assert memory.decoded == decoded
    three = dialect.read(json.dumps(body, indent=1).encode(), memory)
    for other in (two, three):
        assert all(a is b for a, b in zip(one.messages, other.messages, strict=True))
        assert other.tools is one.tools
        assert other.mark == one.mark


@pytest.mark.slow
@given(answers(), texts, st.sampled_from(DIALECTS))
def test_a_replay_is_byte_for_byte_the_same(answer: Message, identifier: str, dialect: Dialect) -> None:
    """Every id that a client gets is made of the answer's own, so a retried request gets what the first one got."""
    sample = next(body for each, body in SAMPLES if each is dialect)
    memory = Memory()
    call = read(dialect, sample, memory)
    first = list(dialect.events(said(answer), call, memory))
    assert list(dialect.events(said(answer), call, memory)) == first
    assert list(dialect.events(said(answer), read(dialect, sample, Memory()), Memory())) == first


@given(st.text(max_size=30_000))
def test_a_long_text_is_cut_into_frames(text: str) -> None:
    """The pieces are the text, none empty and none longer than a client's line."""
    pieces = list(sse.pieces(text))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= 8_192 for piece in pieces)


def test_a_frame_is_one_event() -> None:
    """Newlines in its data are escaped, so a reader finds its end."""
    assert sse.frame({"a": "x\n\ny"}, "e") == b'event: e\ndata: {"a":"x\\n\\ny"}\n\n'
    assert sse.KEEPALIVE.startswith(b":")


def data_of(frames: Any) -> list[dict[str, Any]]:
    """The events' data; what ends a stream of chat completions left out."""
    return [json.loads(frame.partition(b"data: ")[2]) for frame in frames if frame != sse.DONE]


@pytest.mark.slow
@given(answers(), st.sampled_from(["stop", "length"]))
def test_a_stream_of_responses_says_what_the_body_says(answer: Message, reason: Any) -> None:
    """Each item has one identity: as it begins, as it ends, in the last event, and where nothing is streamed."""
    memory, one = Memory(), said(answer, finish_reason=reason)
    call = read(DIALECTS[2], RESPONSES, memory)
    body = json.loads(DIALECTS[2].body(one, call, memory))
    events = data_of(DIALECTS[2].events(one, call, memory))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"] == body
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == body["output"]
    began = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
    assert began == [item["id"] for item in body["output"]]
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert text == answer.text


@pytest.mark.slow
@given(answers(), st.sampled_from(["stop", "length"]))
def test_a_stream_of_messages_says_what_the_body_says(answer: Message, reason: Any) -> None:
    """Block by block: a thinking block is signed before it ends, and one event has the reason and the usage."""
    memory, one = Memory(), said(answer, finish_reason=reason)
    call = read(DIALECTS[1], ANTHROPIC, memory)
    body = json.loads(DIALECTS[1].body(one, call, memory))
    events = data_of(DIALECTS[1].events(one, call, memory))
    assert [event["type"] for event in (events[0], *events[-2:])] == ["message_start", "message_delta", "message_stop"]
    assert events[-2]["delta"]["stop_reason"] == body["stop_reason"]
    assert events[-2]["usage"] == body["usage"]
    blocks = list[dict[str, Any]]()
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            blocks.append({**event["content_block"], "json": ""})
        elif event["type"] == "content_block_delta":
            for name, piece in event["delta"].items():
                if name != "type":
                    key = "json" if name == "partial_json" else name
                    blocks[event["index"]][key] += piece
    for block in blocks:
        given_input = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(given_input)
    assert blocks == body["content"]


@pytest.mark.slow
@given(answers(), st.sampled_from(["stop", "length"]))
def test_a_stream_of_chat_completions_says_what_the_body_says(answer: Message, reason: Any) -> None:
    """Deltas add up to the message; the usage comes last, where it was asked for."""
    memory, one = Memory(), said(answer, finish_reason=reason)
    call = read(DIALECTS[0], CHAT, memory)
    body = json.loads(DIALECTS[0].body(one, call, memory))
    *chunks, counts = data_of(DIALECTS[0].events(one, call, memory))
    assert counts["usage"] == body["usage"]
    made: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for delta in (chunk["choices"][0]["delta"] for chunk in chunks):
        for name in ("content", "reasoning_content"):
            made[name] += delta.get(name) or ""
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                made["tool_calls"].append({"id": part["id"], **part["function"]})
            else:
                made["tool_calls"][part["index"]]["arguments"] += part["function"]["arguments"]
    message = body["choices"][0]["message"]
    assert made["content"] == (message["content"] or "")
    assert made["reasoning_content"] == message.get("reasoning_content", "")
    assert made["tool_calls"] == [{"id": each["id"], **each["function"]} for each in message.get("tool_calls", ())]
    assert chunks[-1]["choices"][0]["finish_reason"] == body["choices"][0]["finish_reason"]


#: What a value of a request may be in its place.
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 10**30, "", "x", "\ud800", [], {}, [[]], [{}], [None], [1], ["x"], {"": 1}),
    *({"type": "x"}, {"type": None}, {"type": "text", "text": 5}, [{"type": "text", "text": None}]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("dialect", "body"), SAMPLES, ids=["chat", "anthropic", "responses"])
def test_any_value_in_any_place_is_read_or_refused(dialect: Dialect, body: dict[str, Any]) -> None:
    """A request that is right but for one value of another type, however deep it lies, is never a fault of ours."""
    refused = 0
    for place in places(body):
        for odd in ODD:
            changed = copy.deepcopy(body)
            inner: Any = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = odd
            try:
                dialect.read(json.dumps(changed).encode(), Memory())
            except DialectError:
                refused += 1
    assert refused > 100


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop_token_ids", [[1]]),
        ("stop_token_ids", ["1"]),
        ("stop_token_ids", [True]),
        ("stop_token_ids", 1),
        ("allowed_token_ids", {"a": 1}),
        ("ignore_eos", "no"),
        ("bad_words", [1]),
    ],
)
def test_a_sampling_parameter_of_a_wrong_type_is_refused_by_name(dialect: Dialect, name: str, value: Any) -> None:
    """Before anything is sampled: what compares ids with it would fail on it in the middle of a turn."""
    asked: dict[str, Any] = {"model": "m"} if dialect.name == "responses" else {"model": "m", "max_tokens": 9}
    asked["input" if dialect.name == "responses" else "messages"] = [{"role": "user", "content": "hi"}]
    with pytest.raises(DialectError) as refused:
        dialect.read(json.dumps({**asked, name: value}).encode(), Memory())
    assert refused.value.status == 400
    assert (refused.value.param or "").startswith(name)
    right = json.dumps({**asked, "stop_token_ids": [1, 2]}).encode()
    assert dialect.read(right, Memory()).sampling["stop_token_ids"] == [1, 2]


DOCS = Path(__file__).parents[3] / "docs" / "agents.md"


@pytest.mark.parametrize("status", [503, 400])
@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("dialect", DIALECTS[:2], ids=lambda dialect: dialect.name)
def test_the_loops_of_the_docs_ask_again_where_a_begun_stream_fails(
    dialect: Dialect, begun: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same key, after growing pauses, and not for ever; an error in place of a stream is the SDK's affair."""
    anthropic = dialect.name == "anthropic"
    error, failures = DialectError(status, "the server is gone"), 2

    class Failing(type(dialect)):  # type: ignore[misc]  # one of several
        def events(self, *args: Any) -> Any:
            if begun and len(played.bodies) <= failures:
                return iter([sse.KEEPALIVE, self.error_event(error)])
            return super().events(*args)

    answer = said(Message("assistant", "four", "I think"))
    played = Played(Failing(), lambda call: answer if begun else error)
    name = "anthropic_loop.py" if anthropic else "openai_loop.py"
    block = DOCS.read_text().partition(f"# {name}\n")[2].partition("```")[0]
    monkeypatch.setenv("ANTHROPIC_API_KEY" if anthropic else "OPENAI_API_KEY", "k")
    here: dict[str, Any] = {}
    exec(block.partition("messages = [")[0], here)
    pauses = list[int]()
    here |= {
        "client": anthropic_client(played) if anthropic else openai_client(played),
        "time": SimpleNamespace(sleep=pauses.append),
    }
    asked: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
    if not begun:
        with pytest.raises(Exception, match="the server is gone"):
            here["ask"](**asked)
        assert pauses == [0]
        return
    message = here["ask"](**asked)
    assert (message.content[-1].text if anthropic else message.content) == "four"
    assert pauses == [0, 1, 5]
    failures = 99
    with pytest.raises(Exception, match="the server is gone"):
        here["ask"](**asked)
    assert len(pauses) == 3 + 4


def test_the_anthropic_loop_of_the_docs_prints_an_answer_without_text(capsys: pytest.CaptureFixture[str]) -> None:
    """It may be a thought that was cut off, or nothing at all."""
    last = DOCS.read_text().partition("# anthropic_loop.py\n")[2].partition("```")[0].strip().splitlines()[-1]
    thought, text = SimpleNamespace(type="thinking"), SimpleNamespace(type="text", text="four")
    for content, printed in (([], ""), ([thought], ""), ([thought, text, text], "fourfour")):
        exec(last, {"message": SimpleNamespace(content=content)})
        assert capsys.readouterr().out == f"{printed}\n"

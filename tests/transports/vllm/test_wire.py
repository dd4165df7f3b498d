"""vLLM's bodies and answers, as seen on the wire of 0.31 and 0.32."""

from __future__ import annotations

import io
from base64 import b64encode
from typing import Any

import msgspec
import numpy as np
import pytest

from rollout.chat.messages import user
from rollout.errors import MalformedReply
from rollout.request import MessagePrompt, Request, TokenPrompt, WeightSpan
from rollout.token_fields import Blob, RoutedExperts, SamplingMask
from transports.http.client import Answer
from transports.vllm.wire import (
    GENERATE,
    chat_body,
    chat_tokens_body,
    completions_body,
    generate_body,
    read_chat,
    read_completions,
    read_generate,
)

TOOLS = [{"type": "function", "function": {"name": "add"}}]


def request(prompt: Any = None, **fields: Any) -> Request:
    base = {"request_id": "r1", "session_id": "s1", "max_tokens": 9, "stop_token_ids": [7, 8]}
    return Request(prompt=prompt or TokenPrompt([1, 2]), **{**base, **fields})


def answer(value: Any) -> Answer:
    return Answer(200, msgspec.json.encode(value), 0.5)


def on_wire(body: dict[str, Any]) -> Any:
    """A body as the server reads it."""
    return msgspec.json.decode(msgspec.json.encode(body))


def test_a_generate_body_has_ids_and_sampling_apart() -> None:
    """Sampling parameters are in `sampling_params`, routing beside them, and the caller's stop ids come first."""
    sampling = {"temperature": 0.5, "stop_token_ids": [3, 7], "cache_salt": "own", "logprobs": 5}
    assert on_wire(generate_body(request(sampling=sampling, priority=2), "m")) == {
        "model": "m",
        "token_ids": [1, 2],
        "sampling_params": {
            "temperature": 0.5,
            "stop_token_ids": [3, 7, 8],
            "logprobs": 5,
            "max_tokens": 9,
            "detokenize": False,
        },
        "cache_salt": "own",
        "priority": 2,
        "request_id": "r1",
    }


@pytest.mark.parametrize(
    ("asked", "sent"), [({}, 0), ({"logprobs": None}, 0), ({"logprobs": True}, 0), ({"logprobs": 2}, 2)]
)
def test_a_generate_body_asks_for_no_more_than_a_chat_body(asked: dict[str, Any], sent: int) -> None:
    """The sampled token's logprob and no alternative, unless the caller wants some: each costs the server a ranking."""
    body = generate_body(request(TokenPrompt([1]), sampling=asked), "m")
    assert body["sampling_params"]["logprobs"] == sent
    assert "top_logprobs" not in chat_body(request(MessagePrompt([user("x")]), sampling=asked), "m")


def test_a_completions_body_asks_for_ids_and_logprobs() -> None:
    """The prompt is a list of ids; logprobs 0 is the sampled token's."""
    body = on_wire(completions_body(request(sampling={"top_p": 0.9}, cache_salt="v1"), "m"))
    assert body == {
        "model": "m",
        "prompt": [1, 2],
        "max_tokens": 9,
        "top_p": 0.9,
        "stop_token_ids": [7, 8],
        "logprobs": 0,
        "return_token_ids": True,
        "cache_salt": "v1",
    }


def test_a_chat_body_carries_tools_and_template_arguments() -> None:
    """Tools are rendered but not parsed there: without a tool parser vLLM refuses `auto`."""
    prompt = MessagePrompt(messages=[user("hi")], tools=TOOLS, template_args={"enable_thinking": False})
    body = on_wire(chat_body(request(prompt, sampling={"max_completion_tokens": 5}), "m"))
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 9,
        "stop_token_ids": [7, 8],
        "logprobs": True,
        "return_token_ids": True,
        "tools": TOOLS,
        "tool_choice": "none",
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_the_callers_own_tool_choice_stands() -> None:
    """What the caller passes is passed through."""
    prompt = MessagePrompt(messages=[user("hi")], tools=TOOLS)
    assert on_wire(chat_body(request(prompt, sampling={"tool_choice": "auto"}), "m"))["tool_choice"] == "auto"


def test_the_patched_route_has_tokens_beside_a_placeholder() -> None:
    """Ids are in `tokens`, and no tools are sent with them."""
    body = on_wire(chat_tokens_body(request(), "m"))
    assert body["tokens"] == [1, 2]
    assert body["messages"] == [{"role": "user", "content": "."}]


def test_no_seed_is_sent_unless_the_caller_does() -> None:
    """A per-request seed kills vLLM's CPU engine."""
    assert "seed" not in on_wire(generate_body(request(), "m"))["sampling_params"]
    assert on_wire(generate_body(request(sampling={"seed": 1}), "m"))["sampling_params"]["seed"] == 1


@pytest.mark.parametrize(
    "entries",
    [
        [{"token_id": 5, "logprob": -0.1, "rank": 1}, {"token_id": 6, "logprob": -0.2, "rank": 3}],
        [{"token": "token_id:5", "logprob": -0.1}, {"token": "token_id:6", "logprob": -0.2}],
    ],
)
def test_both_logprob_forms_are_read(entries: Any) -> None:
    """The generate route of 0.32 and that of older servers give the same reply."""
    choice = {"token_ids": [5, 6], "finish_reason": "stop", "logprobs": {"content": entries}}
    choice["weight_versions"] = [{"version": "7", "start": 0, "end": 1}, {"version": "8", "start": 1, "end": 2}]
    usage = {"prompt_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
    reply = read_generate(answer({"choices": [choice], "usage": usage}))
    assert (reply.completion_ids, reply.logprobs) == ([5, 6], [-0.1, -0.2])
    assert (reply.prompt_tokens, reply.cached_tokens, reply.finish_reason) == (2, 1, "stop")
    assert reply.weight_versions == (WeightSpan("7", 0, 1), WeightSpan("8", 1, 2))


def test_a_completions_answer_is_read() -> None:
    """Ids, logprobs and the prompt's ids are in the choice."""
    logprobs = {"token_logprobs": [-0.5]}
    choice = {"token_ids": [5], "prompt_token_ids": [1, 2], "finish_reason": "length", "logprobs": logprobs}
    reply = read_completions(answer({"choices": [choice]}))
    assert (reply.completion_ids, reply.logprobs, reply.prompt_ids) == ([5], [-0.5], [1, 2])
    assert (reply.finish_reason, reply.cached_tokens) == ("length", None)


def test_a_chat_answer_is_read() -> None:
    """Ids are in the choice, the prompt's at the top, and content may be null."""
    message: dict[str, Any] = {"role": "assistant", "content": None, "reasoning": "r", "tool_calls": []}
    choice: dict[str, Any] = {"token_ids": [5], "finish_reason": "tool_calls", "message": message}
    choice["logprobs"] = {"content": [{"token": "x", "logprob": -1, "bytes": [1]}]}
    reply = read_chat(answer({"choices": [choice], "prompt_token_ids": [1, 2, 3]}))
    assert (reply.prompt_ids, reply.completion_ids, reply.logprobs) == ([1, 2, 3], [5], [-1.0])
    assert reply.finish_reason == "stop"
    assert reply.message is not None
    assert reply.message.reasoning_content == "r"


def generated(**changes: Any) -> dict[str, Any]:
    choice = {"token_ids": [5, 6], "logprobs": {"content": [{"logprob": -1}, {"logprob": -2}]}, **changes}
    return {"choices": [choice]}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (generated(logprobs={"content": [{"logprob": -1}]}), "2 ids but 1 logprobs"),
        (generated(logprobs=None), "no logprobs"),
        (generated(logprobs={"content": [{"logprob": -1}, {"logprob": None}]}), "null in the place"),
        (generated(token_ids=None), "no token_ids"),
        (generated(logprobs={"content": [{"token_id": 5, "logprob": -1}, {"token_id": 9, "logprob": -2}]}), "token 9"),
        (generated(logprobs={"content": [{"token": "token_id:x", "logprob": -1}] * 2}), "token_id:x where 5"),
        (generated(logprobs={"content": [{"logprob": -1}, {"logprob": -9999.0}]}), "logprob 1 is -9999.0"),
        ({"choices": []}, "no choices"),
        ({"error": {"message": "odd"}}, "no choices.*odd"),
        ({"choices": [{"token_ids": "many"}]}, "cannot be read"),
    ],
)
def test_an_answer_that_cannot_be_trusted_is_refused(value: Any, said: str) -> None:
    """Counts that differ, gaps and strangers are errors of the turn, never trimmed."""
    with pytest.raises(MalformedReply, match=said):
        read_generate(answer(value))


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"choices": [{"token_', b"[]"])
def test_a_body_that_is_not_json_is_named(body: bytes) -> None:
    """A page, nothing, or half a body is a malformed reply."""
    with pytest.raises(MalformedReply, match="cannot be read"):
        read_generate(Answer(200, body, 0.0))


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, False),
        ({"stop": []}, False),
        ({"stop": None}, False),
        ({"stop": "END"}, None),
        ({"stop": ["END"]}, None),
        ({"detokenize": True}, True),
    ],
)
def test_a_server_makes_texts_only_for_stop_strings(asked: dict[str, Any], sent: bool | None) -> None:
    """Token-in reads ids: a text of each token costs the server, and only a stop string needs one."""
    body = generate_body(request(TokenPrompt([1]), sampling=asked), "m")
    assert body["sampling_params"].get("detokenize") is sent


def test_experts_are_asked_from_where_they_are_missing() -> None:
    """On each route by the field that it has; from the beginning, and unasked, no body is another than before."""
    tokens = request(routed_experts_from=3, sampling_mask=True)
    assert on_wire(generate_body(tokens, "m"))["sampling_params"]["routed_experts_prompt_start"] == 3
    assert on_wire(completions_body(tokens, "m"))["routed_experts_prompt_start"] == 3
    messages = MessagePrompt(messages=[user("x")])
    for body, prompt in ((generate_body, None), (completions_body, None), (chat_body, messages)):
        asked, unasked = request(prompt, routed_experts_from=0), request(prompt)
        assert on_wire(body(asked, "m")) == on_wire(body(unasked, "m"))


def test_experts_and_masks_are_read_where_they_are_asked_for() -> None:
    """vLLM answers them with everything once it is started so: what nobody asked for is not even decoded."""
    experts = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    choice = {"token_ids": [5], "finish_reason": "stop", "logprobs": {"content": [{"token_id": 5, "logprob": -1}]}}
    choice |= {"routed_experts": npy_text(experts), "sampling_mask": [[5, 6]]}
    asked = request(routed_experts_from=0, sampling_mask=True)
    reply = read_generate(answer({"choices": [choice]}), asked)
    assert reply.routed_experts == RoutedExperts(data=Blob(bytes(range(8))), layers=2, top_k=2)
    assert reply.sampling_mask == SamplingMask.of([[5, 6]])
    for unasked in (None, request()):
        reply = read_generate(answer({"choices": [{**choice, "routed_experts": 7}]}), unasked)
        assert (reply.routed_experts, reply.sampling_mask) == (None, None)
    text = {**choice, "logprobs": {"token_logprobs": [-0.5]}, "prompt_token_ids": [1, 2]}
    assert read_completions(answer({"choices": [text]}), asked).routed_experts is not None
    chat = {**choice, "message": {"role": "assistant", "content": "x"}}
    assert read_chat(answer({"choices": [chat], "prompt_token_ids": [1, 2]}), asked).routed_experts is not None
    with pytest.raises(MalformedReply, match=f"{GENERATE}: routed_experts cannot be read"):
        read_generate(answer({"choices": [{**choice, "routed_experts": 7}]}), asked)


def npy_text(array: Any) -> str:
    """An array as vLLM writes it into JSON."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return b64encode(file.getvalue()).decode()


def test_images_go_beside_the_ids_and_are_told_of() -> None:
    """One part an image, and the question what was read; under `--verify` that is asked of every prompt of ids."""
    body = on_wire(generate_body(request(TokenPrompt([1, 300], ("data:a", "data:b"))), "m"))
    assert body["content_parts"] == [{"type": "image_url", "url": "data:a"}, {"type": "image_url", "url": "data:b"}]
    assert body["return_token_ids"] is True
    assert on_wire(generate_body(request(echo_prompt=True), "m"))["return_token_ids"] is True
    assert "content_parts" not in on_wire(generate_body(request(), "m"))


@pytest.mark.parametrize(
    ("places", "spans"),
    [
        (None, None),
        ({"image": [{"offset": 9, "length": 4}, {"offset": 1, "length": 2}]}, ((1, 2), (9, 4))),
        ({}, ()),
        ({"image": [], "audio": [{"offset": 1, "length": 2}]}, None),
    ],
)
def test_where_images_stand_is_read(places: Any, spans: Any) -> None:
    """In order; what is no image has no place that is understood."""
    choice = {"token_ids": [5], "logprobs": {"content": [{"token_id": 5, "logprob": -1.0}]}}
    reply = read_generate(answer({"choices": [choice], "prompt_token_ids": [1, 2], "mm_placeholders": places}))
    assert (reply.prompt_ids, reply.image_spans) == ([1, 2], spans)

"""SGLang's bodies and answers, as seen on the wire of 0.5.23: each of its traps is a test."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.messages import user
from rollout.errors import MalformedReply, PromptTooLong, RequestRefused
from rollout.request import MessagePrompt, Request, TokenPrompt, WeightSpan
from rollout.token_fields import Blob, RoutedExperts, SamplingMask
from transports.http.answers import error_of
from transports.http.client import Answer
from transports.sglang.wire import Ways, chat_body, check_prompt, generate_body, read_chat, read_generate

TOOLS = [{"type": "function", "function": {"name": "add"}}]
WAYS = Ways(context=100, vocab_size=50)


def request(prompt: Any = None, **fields: Any) -> Request:
    base = {"request_id": "r1", "session_id": "s1", "max_tokens": 9, "stop_token_ids": [7, 8]}
    return Request(prompt=prompt or TokenPrompt([1, 2]), **{**base, **fields})


def generate(ways: Ways = WAYS, **fields: Any) -> Any:
    """The body of a token-in request, as the server reads it."""
    return msgspec.json.decode(msgspec.json.encode(generate_body(request(**fields), "rid", ways)))


def chat(ways: Ways = WAYS, **fields: Any) -> Any:
    prompt = fields.pop("prompt", None) or MessagePrompt(messages=[user("x")])
    return msgspec.json.decode(msgspec.json.encode(chat_body(request(prompt, **fields), "m", "rid", ways)))


def test_a_token_in_body_has_sglangs_names() -> None:
    """OpenAI's names become its own; what is no sampling parameter stands beside them, where it is taken."""
    sampling = {"min_tokens": 2, "seed": 5, "top_p": 0.9, "lora_path": "l", "logprobs": True, "top_logprobs": 3}
    body = generate(sampling=sampling, cache_salt="v1", echo_prompt=True)
    assert body == {
        "rid": "rid",
        "session_id": "s1",
        "cache_salt": "v1",
        "input_ids": [1, 2],
        "return_logprob": True,
        "return_prompt_token_ids": True,
        "top_logprobs_num": 3,
        "lora_path": "l",
        "sampling_params": {
            "max_new_tokens": 9,
            "min_new_tokens": 2,
            "sampling_seed": 5,
            "top_p": 0.9,
            "stop_token_ids": [7, 8],
        },
    }


def test_what_it_does_not_know_is_its_to_refuse() -> None:
    """A caller's own parameter goes to where it is answered 400; what is of messages is left out."""
    params = generate(sampling={"no_such": 1, "tools": TOOLS, "chat_template_kwargs": {"a": 1}})["sampling_params"]
    assert params["no_such"] == 1
    assert not {"tools", "chat_template_kwargs"} & params.keys()


@given(length=st.integers(1, 99), asked=st.none() | st.integers(1, 300))
def test_a_completion_is_cut_to_the_room(length: int, asked: int | None) -> None:
    """SGLang refuses prompt and completion together that are longer than the context; without a number it gives 128."""
    params = generate(prompt=TokenPrompt([1] * length), max_tokens=asked)["sampling_params"]
    assert params["max_new_tokens"] == min(100 - length, asked or 100)


def test_without_a_known_context_nothing_is_cut() -> None:
    """And no number is said as such, since one that is left out is 128."""
    assert generate(Ways(), max_tokens=None)["sampling_params"]["max_new_tokens"] is None


@pytest.mark.parametrize(("asked", "sent"), [(0, -1), (-1, -1), (20, 20)])
def test_top_k_of_none_is_minus_one(asked: int, sent: int) -> None:
    """0 is no limit for vLLM, and 400 for SGLang."""
    assert generate(sampling={"top_k": asked})["sampling_params"]["top_k"] == sent
    assert chat(sampling={"top_k": asked})["top_k"] == sent


def test_a_model_whose_own_top_k_is_zero_is_said_otherwise() -> None:
    """Its chat route would refuse every request that leaves it out; any other model's own is left alone."""
    ways = Ways(chat_top_k=True)
    assert chat(ways)["top_k"] == chat(ways, sampling={"top_k": None})["top_k"] == -1
    assert chat(ways, sampling={"top_k": 5})["top_k"] == 5
    assert "top_k" not in chat(Ways())


def test_ids_are_sampled_as_messages_are() -> None:
    """`/generate` reads no generation_config: what messages are sampled by goes along, below the caller's own."""
    ways = Ways(defaults={"temperature": 0.6, "top_k": -1, "top_p": 0.9})
    params = generate(ways, sampling={"temperature": 1.0, "top_p": None})["sampling_params"]
    assert (params["temperature"], params["top_p"], params["top_k"]) == (1.0, 0.9, -1)


def test_tools_are_not_hidden() -> None:
    """With `tool_choice: "none"`, which vLLM wants, SGLang leaves the tools out of the prompt."""
    body = chat(prompt=MessagePrompt([user("x")], TOOLS, {"enable_thinking": False}))
    assert body["tools"] == TOOLS
    assert "tool_choice" not in body
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["return_token_ids"] is body["return_meta_info"] is body["logprobs"] is True


@pytest.mark.parametrize(("sign", "sent"), [(0, None), (1, 3), (-1, -3)])
def test_priority_is_turned_round(sign: int, sent: int | None) -> None:
    """Ours is lowest first; SGLang's is highest first unless told, and nothing where it was not enabled."""
    for body in (generate(Ways(priority_sign=sign), priority=3), chat(Ways(priority_sign=sign), priority=3)):
        assert body.get("priority") == sent


@given(st.lists(st.integers(-100, 100), min_size=1, max_size=20))
def test_an_id_that_is_none_never_leaves(ids: list[int]) -> None:
    """It would kill the scheduler, and every request with it: any prompt goes out whole, or is refused whole."""
    if all(0 <= one < 50 for one in ids):
        check_prompt(TokenPrompt(ids), WAYS)
    else:
        with pytest.raises(RequestRefused, match=r"the model has 50 tokens, and id -?\d+ is none of them"):
            check_prompt(TokenPrompt(ids), WAYS)


def test_stop_tokens_that_are_none_are_left_out() -> None:
    """Nothing can stop at them, and with a least length they are looked up in a table that has no such place."""
    assert generate(stop_token_ids=[7, 50, -1])["sampling_params"]["stop_token_ids"] == [7]
    assert chat(stop_token_ids=[7, 50])["stop_token_ids"] == [7]


@pytest.mark.parametrize("length", [100, 101, 5000])
def test_a_prompt_beyond_the_context_is_refused_here(length: int) -> None:
    """A prompt that fills it leaves no room for a token."""
    with pytest.raises(PromptTooLong, match="do not fit the context of 100"):
        check_prompt(TokenPrompt([1] * length), WAYS)
    check_prompt(TokenPrompt([1] * length), Ways())
    with pytest.raises(RequestRefused, match="empty"):
        check_prompt(TokenPrompt([]), WAYS)


@pytest.mark.parametrize(
    "said",
    [
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 9",
        "Input length (4092 tokens) exceeds the maximum allowed length (4090 tokens). Use a shorter input or enable",
    ],
)
def test_its_words_for_a_prompt_too_long(said: str) -> None:
    """Each is told apart from another refusal: the rollout ends as one that filled its context."""
    body = msgspec.json.encode({"error": {"message": said}})
    assert isinstance(error_of(400, body, "/generate"), PromptTooLong)


def meta(*entries: Any, **changes: Any) -> dict[str, Any]:
    spans = [{"version": "8", "start": 0, "end": 1}, {"version": "9", "start": 1, "end": 2}]
    base = {"finish_reason": {"type": "stop", "matched": 6}, "prompt_tokens": 3, "cached_tokens": 2}
    return {**base, "weight_versions": spans, "output_token_logprobs": list(entries), **changes}


def answered(**fields: Any) -> Answer:
    return Answer(200, msgspec.json.encode(fields), 0.1)


def test_an_answer_to_ids_is_read_whole() -> None:
    """Ids, logprobs, cached tokens and the versions by span; the token's text may be there or not."""
    entries = [-0.5, 5, None], [-1.5, 6, "x"]
    reply = read_generate(answered(output_ids=[5, 6], meta_info=meta(*entries), prompt_token_ids=[1, 2, 3]))
    assert (reply.completion_ids, reply.logprobs, reply.prompt_ids) == ([5, 6], [-0.5, -1.5], [1, 2, 3])
    assert (reply.finish_reason, reply.prompt_tokens, reply.cached_tokens) == ("stop", 3, 2)
    assert reply.weight_versions == (WeightSpan("8", 0, 1), WeightSpan("9", 1, 2))


def test_an_answer_to_messages_is_read_whole() -> None:
    """All of it is the engine's; the usage, which says no cached tokens without --enable-cache-report, is not asked."""
    message = {"role": "assistant", "content": "x"}
    choice = {"prompt_token_ids": [1], "response_token_ids": [5], "meta_info": meta([-0.5, 5, "x"], weight_versions=[])}
    usage = {"prompt_tokens": 3, "prompt_tokens_details": None}
    reply = read_chat(answered(choices=[{**choice, "message": message, "finish_reason": "stop"}], usage=usage))
    assert (reply.completion_ids, reply.logprobs, reply.prompt_ids, reply.cached_tokens) == ([5], [-0.5], [1], 2)
    assert reply.message is not None
    assert reply.message.content == "x"


def test_an_older_server_answers_text() -> None:
    """Without meta_info ids have no logprobs: then there are none, and the caller falls back by name."""
    choice = {"message": {"role": "assistant", "content": "x"}, "finish_reason": "length", "response_token_ids": [5]}
    reply = read_chat(answered(choices=[choice], usage={"prompt_tokens": 4}))
    assert (reply.completion_ids, reply.logprobs, reply.finish_reason, reply.prompt_tokens) == (None, None, "length", 4)


@pytest.mark.parametrize("ids", [None, []])
def test_an_abort_before_the_first_token_is_an_abort(ids: Any) -> None:
    """In the queue there are no ids, and a span of none."""
    spans = [{"version": "8", "start": 0, "end": 0}]
    aborted = {"finish_reason": {"type": "abort", "message": "Abort in waiting queue"}, "weight_versions": spans}
    reply = read_generate(answered(text="", output_ids=ids, meta_info=aborted))
    assert (reply.completion_ids, reply.logprobs, reply.finish_reason, reply.weight_versions) == ([], [], "abort", ())


@pytest.mark.parametrize(
    ("ids", "entries", "said"),
    [
        (None, [[-1.0, 5, None]], "no output_ids"),
        ([5, 6], [[-1.0, 5, None]], "2 ids but 1 logprobs"),
        ([5, 6], None, "no logprobs"),
        ([5, 6], [[-1.0, 5, None], [-1.0, 7, None]], "a logprob is of token 7 where 6 was sampled"),
        ([5], [[None, 5, None]], "cannot be used"),
    ],
)
def test_what_does_not_fit_together_is_an_error(ids: Any, entries: Any, said: str) -> None:
    """Never a silent trim, and never the logprob of another token."""
    with pytest.raises(MalformedReply, match=said):
        read_generate(answered(output_ids=ids, meta_info=meta(output_token_logprobs=entries)))


def test_no_choice_is_an_error() -> None:
    """With the beginning of what came."""
    with pytest.raises(MalformedReply, match="no choices"):
        read_chat(answered(choices=[]))


def test_experts_and_masks_are_asked_for_beside_the_sampling() -> None:
    """By both routes, and only where a run wants them: an older server refuses what it does not know."""
    asked: dict[str, Any] = {"routed_experts_from": 3, "sampling_mask": True}
    names = {"return_routed_experts": True, "routed_experts_start_len": 3, "return_sampling_mask": True}
    for body in (generate, chat):
        assert names.items() <= body(**asked).items()
        assert not names.keys() & body().keys()


@pytest.mark.parametrize("ways", [WAYS, Ways(experts=(2, 2))])
def test_experts_have_the_positions_that_were_asked_for(ways: Ways) -> None:
    """Raw int32, from `routed_experts_start_len` to the last token but one; masks are lists of ids."""
    data = b64encode(np.arange(8, dtype="<i4").tobytes()).decode()
    fields = {"routed_experts": data, "output_token_sampling_mask": [[5, 1], [6]]}
    said = meta([-0.5, 5, None], [-1.5, 6, None], **fields)
    asked = request(TokenPrompt([1, 2, 3]), routed_experts_from=2, sampling_mask=True)
    shape = ways.experts or (1, 4)
    whole = RoutedExperts(data=Blob(bytes(range(8))), layers=shape[0], top_k=shape[1])
    choice = {"prompt_token_ids": [1, 2, 3], "response_token_ids": [5, 6], "meta_info": said}
    for reply in (
        read_generate(answered(output_ids=[5, 6], meta_info=said), asked, ways),
        read_chat(answered(choices=[choice]), asked, ways),
    ):
        assert reply.routed_experts == whole
        assert reply.sampling_mask == SamplingMask.of([[5, 1], [6]])
    unasked = read_generate(answered(output_ids=[5, 6], meta_info=said))
    assert (unasked.routed_experts, unasked.sampling_mask) == (None, None)


def test_an_abort_without_a_token_has_no_experts() -> None:
    """What SGLang has of a prompt that it did not compute to its end is of no use."""
    said = {"finish_reason": {"type": "abort", "message": "paused"}, "prompt_tokens": 3, "routed_experts": "AAAA"}
    asked = request(TokenPrompt([1, 2, 3]), routed_experts_from=0)
    assert read_generate(answered(text="", output_ids=[], meta_info=said), asked, WAYS).routed_experts is None

"""SGLang's bodies and answers: message-in by chat completions, token-in by `/generate`. Pure.

Its names are its own (`max_new_tokens`, `min_new_tokens`, `sampling_seed`). What it would refuse for its form is put
right here: `top_k: 0`, or a completion that is longer than the context has room for. What would kill it is refused
here: an id that the model does not have ends the scheduler, and with it every request that runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from rollout.errors import MalformedReply, PromptTooLong, RequestRefused
from rollout.request import FinishReason, MessagePrompt, Reply, Request, TokenPrompt
from rollout.token_fields import RoutedExperts, SamplingMask
from transports.fields import ABSENT, EXPERTS, experts_of_bytes, mask_of_lists
from transports.http.client import Answer, decode
from transports.large import decode_apart, put_back
from transports.openai import (
    Span,
    TokenId,
    Usage,
    finish_reason,
    merged,
    paired,
    server_message_of,
    weight_spans,
)

CHAT = "/v1/chat/completions"
GENERATE = "/generate"
TOKENIZE = "/tokenize"
DETOKENIZE = "/detokenize"

#: OpenAI's and vLLM's names of what `/generate` calls otherwise.
_NATIVE = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "seed": "sampling_seed",
}
_OPENAI = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "sampling_seed": "seed"}

#: Fields that `/generate` takes beside `sampling_params`, not in it: it refuses what it does not know there.
_GENERATE_ROOT = frozenset(
    {"cache_salt", "extra_key", "priority", "session_id", "session_params", "routing_key", "lora_path"}
    | {"custom_logit_processor", "logprob_start_len", "top_logprobs_num", "token_ids_logprob", "custom_labels"}
    | {"return_hidden_states", "return_routed_experts", "routed_experts_start_len", "return_sampling_mask"}
    | {"routed_dp_rank", "bootstrap_host", "bootstrap_port", "bootstrap_room", "disagg_prefill_dp_rank", "no_logs"}
)

#: Fields of message-in that say nothing of ids.
_OF_MESSAGES = frozenset(
    {"chat_template_kwargs", "tools", "tool_choice", "parallel_tool_calls", "add_generation_prompt"}
    | {"reasoning_effort", "separate_reasoning", "stream_reasoning", "user", "metadata", "model", "logprobs"}
)


class Ways(msgspec.Struct, kw_only=True):
    """What bodies depend on, of the server that they go to."""

    context: int | None = None
    """Tokens, prompt and completion together; None where it does not say."""
    vocab_size: int | None = None
    """Ids below it are the model's; None where it does not say."""
    priority_sign: int = 0
    """-1 where the highest number is served first, 1 where the lowest is, 0 where it refuses to be told."""
    chat_top_k: bool = False
    """Whether the model's own settings say `top_k: 0`, which the chat route refuses unless a request says -1."""
    defaults: Mapping[str, float] = {}
    """How messages are sampled where a request says nothing, whole: `/generate` does not read the model's settings."""
    experts: tuple[int, int] | None = None
    """Layers, and experts that each sends a token to; None where the model's configuration is not on this machine."""


class Finish(msgspec.Struct):
    type: str
    message: str | None = None


class TokenLogprob(msgspec.Struct, array_like=True, gc=False):
    """An entry of `output_token_logprobs`; a third element, the token's text, is passed over."""

    logprob: float | None
    token_id: TokenId


class _Meta(msgspec.Struct):
    finish_reason: Finish | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    weight_versions: list[Span] | None = None
    output_token_logprobs: list[TokenLogprob] | None = None
    routed_experts: msgspec.Raw = ABSENT
    output_token_sampling_mask: msgspec.Raw = ABSENT


class _Generated(msgspec.Struct):
    meta_info: _Meta
    output_ids: list[TokenId] | None = None
    prompt_token_ids: list[TokenId] | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None
    message: dict[str, Any] | None = None
    prompt_token_ids: list[TokenId] | None = None
    response_token_ids: list[TokenId] | None = None
    meta_info: _Meta | None = None


class _Chat(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None


class _Detokenized(msgspec.Struct):
    text: str


_DETOKENIZED = msgspec.json.Decoder(_Detokenized)
_GENERATED = msgspec.json.Decoder(_Generated)
_CHAT = msgspec.json.Decoder(_Chat)


def check_prompt(prompt: TokenPrompt, ways: Ways) -> None:
    """Raises RequestRefused for ids that would kill the server, and PromptTooLong for more than the context holds."""
    length = len(prompt.ids)
    if not length:
        raise RequestRefused("the prompt is empty")
    if ways.context is not None and length >= ways.context:
        raise PromptTooLong(f"the prompt's {length} tokens do not fit the context of {ways.context}")
    if ways.vocab_size is not None:
        ids = np.frombuffer(prompt.ids, np.int32)
        for one in (int(ids.max()), int(ids.min())):
            if not 0 <= one < ways.vocab_size:
                why = (
                    f"the model has {ways.vocab_size} tokens, and id {one} is none of them: is it another tokenizer's?"
                )
                raise RequestRefused(f"{why} SGLang would die of it")


def chat_body(request: Request, model: str, rid: str, ways: Ways) -> dict[str, Any]:
    """The body of a message-in request.

    No `tool_choice: "none"`: with it SGLang leaves the tools out of the prompt. Without a tool parser it answers text.
    """
    prompt = request.prompt
    assert isinstance(prompt, MessagePrompt)
    body = {_OPENAI.get(key, key): value for key, value in request.sampling.items()}
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
        body.pop("max_completion_tokens", None)
    if body.get("top_k") == 0 or (ways.chat_top_k and body.get("top_k") is None):
        body["top_k"] = -1
    if stops := _stops(body, request, ways):
        body["stop_token_ids"] = stops
    body |= {
        "model": model,
        "messages": prompt.json(),
        "logprobs": True,
        "return_token_ids": True,
        "return_prompt_token_ids": True,
        "return_meta_info": True,
    }
    if prompt.tools:
        body["tools"] = list(prompt.tools)
    if prompt.template_args:
        body["chat_template_kwargs"] = {**body.get("chat_template_kwargs", {}), **prompt.template_args}
    return _with_routing(body, request, rid, ways)


def generate_body(request: Request, rid: str, ways: Ways) -> dict[str, Any]:
    """The body of a token-in request. The completion's length is cut to the room that the context has."""
    prompt = request.prompt
    assert isinstance(prompt, TokenPrompt)
    body: dict[str, Any] = {}
    sampling: dict[str, Any] = dict(ways.defaults)
    for key, value in request.sampling.items():
        if key in _GENERATE_ROOT:
            body[key] = value
        elif key == "top_logprobs":
            body["top_logprobs_num"] = value or 0
        elif key not in _OF_MESSAGES and value is not None:
            sampling[_NATIVE.get(key, key)] = value
    if sampling.get("top_k") == 0:
        sampling["top_k"] = -1
    if request.max_tokens is not None:
        sampling["max_new_tokens"] = request.max_tokens
    room = None if ways.context is None else ways.context - len(prompt.ids)
    asked = sampling.get("max_new_tokens")
    if room is not None and (asked is None or (isinstance(asked, int) and asked > room)):
        asked = room
    sampling["max_new_tokens"] = asked  # null fills the context; without it there are 128
    if stops := _stops(sampling, request, ways):
        sampling["stop_token_ids"] = stops
    body |= {"input_ids": prompt.json(), "sampling_params": sampling, "return_logprob": True}
    if request.echo_prompt:
        body["return_prompt_token_ids"] = True
    return _with_routing(body, request, rid, ways)


def _stops(sampling: Mapping[str, Any], request: Request, ways: Ways) -> list[Any]:
    """The caller's and the renderer's. An id that the model does not have stops nothing, and kills `min_new_tokens`."""
    stops = merged(sampling.get("stop_token_ids"), request.stop_token_ids)
    size = ways.vocab_size
    return stops if size is None else [one for one in stops if not isinstance(one, int) or 0 <= one < size]


def _with_routing(body: dict[str, Any], request: Request, rid: str, ways: Ways) -> dict[str, Any]:
    body["rid"] = rid
    body["session_id"] = request.session_id
    if request.cache_salt is not None:
        body["cache_salt"] = request.cache_salt
    if request.priority is not None and ways.priority_sign:
        body["priority"] = request.priority * ways.priority_sign
    if request.routed_experts_from is not None:
        body |= {"return_routed_experts": True, "routed_experts_start_len": request.routed_experts_from}
    if request.sampling_mask:
        body["return_sampling_mask"] = True
    return body


def read_generate(answer: Answer, request: Request | None = None, ways: Ways | None = None) -> Reply:
    """Reads an answer of `/generate`. Raises MalformedReply.

    What a server reports of each token is read where the request asks for it, here and in `read_chat`.
    """
    value, experts = decode_apart(_GENERATED, answer, GENERATE, EXPERTS)
    meta = value.meta_info
    reason = _reason(meta, None)
    ids = value.output_ids
    if ids is None:
        if reason != "abort":
            raise MalformedReply(f"{GENERATE}: the answer has no output_ids")
        ids = []  # it was aborted before it had any
    return Reply(
        completion_ids=ids,
        logprobs=_logprobs(ids, meta, GENERATE),
        prompt_ids=value.prompt_token_ids,
        finish_reason=reason,
        prompt_tokens=meta.prompt_tokens,
        cached_tokens=meta.cached_tokens,
        weight_versions=weight_spans(_spans(meta)),
        routed_experts=_experts(
            put_back(meta.routed_experts, experts), meta.prompt_tokens, ids, request, ways, GENERATE
        ),
        sampling_mask=_mask(meta, request, GENERATE),
        request_s=answer.elapsed_s,
    )


def read_chat(answer: Answer, request: Request | None = None, ways: Ways | None = None) -> Reply:
    """Reads a message-in answer. Raises MalformedReply.

    Ids, logprobs, cached tokens and versions are all the engine's, from `meta_info`; a server that is too old to give
    them answers text, and the caller falls back.
    """
    value, experts = decode_apart(_CHAT, answer, CHAT, EXPERTS)
    if not value.choices:
        start = answer.body[:200].decode("utf-8", "replace")
        raise MalformedReply(f"{CHAT}: the answer has no choices: {start}", status=answer.status, body=start)
    choice, usage = value.choices[0], value.usage or Usage()
    meta = choice.meta_info or _Meta()
    ids = choice.response_token_ids if choice.meta_info is not None else None
    return Reply(
        completion_ids=ids,
        logprobs=None if ids is None else _logprobs(ids, meta, CHAT),
        prompt_ids=choice.prompt_token_ids,
        finish_reason=_reason(meta, choice.finish_reason),
        message=server_message_of(choice.message),
        prompt_tokens=meta.prompt_tokens if meta.prompt_tokens is not None else usage.prompt_tokens,
        cached_tokens=meta.cached_tokens if meta.cached_tokens is not None else usage.cached_tokens,
        weight_versions=weight_spans(_spans(meta)),
        routed_experts=_experts(put_back(meta.routed_experts, experts), meta.prompt_tokens, ids, request, ways, CHAT),
        sampling_mask=_mask(meta, request, CHAT),
        request_s=answer.elapsed_s,
    )


def read_text(answer: Answer) -> str:
    """The text of ids. Raises MalformedReply."""
    detokenized: _Detokenized = decode(_DETOKENIZED, answer, DETOKENIZE)
    return detokenized.text


def _experts(
    field: msgspec.Raw,
    prompt_tokens: int | None,
    ids: list[int] | None,
    request: Request | None,
    ways: Ways | None,
    path: str,
) -> RoutedExperts | None:
    """They have no shape of their own: how many positions there are follows from what was asked."""
    if request is None or request.routed_experts_from is None or not ids or prompt_tokens is None:
        return None
    rows = prompt_tokens + len(ids) - 1 - request.routed_experts_from
    return experts_of_bytes(field, ways.experts if ways else None, rows, path)


def _mask(meta: _Meta, request: Request | None, path: str) -> SamplingMask | None:
    if request is None or not request.sampling_mask:
        return None
    return mask_of_lists(meta.output_token_sampling_mask, path)


def _reason(meta: _Meta, said: str | None) -> FinishReason:
    return finish_reason(meta.finish_reason.type if meta.finish_reason is not None else said)


def _logprobs(ids: list[int], meta: _Meta, path: str) -> list[float]:
    """The logprobs of these ids. Raises MalformedReply where they are of others."""
    entries = meta.output_token_logprobs
    if not ids and not entries:
        return []
    logprobs = paired(ids, None if entries is None else [entry.logprob for entry in entries])
    assert entries is not None
    named = [entry.token_id for entry in entries]
    if named != ids:
        at = next(at for at, (one, other) in enumerate(zip(ids, named, strict=True)) if one != other)
        raise MalformedReply(f"{path}: a logprob is of token {named[at]} where {ids[at]} was sampled")
    return logprobs


def _spans(meta: _Meta) -> list[Span]:
    """Without the one of no tokens that a request has which ended before it sampled any."""
    return [span for span in meta.weight_versions or () if span.end > span.start]

"""vLLM's bodies and answers: message-in by chat, token-in by one of three routes. Pure.

/inference/v1/generate        ids in and out, weight versions; newer servers, with --enable-scale-out
/v1/completions               a list of ids as prompt; every version
/v1/chat/completions/tokens   ids beside messages; trainers' patched servers
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from rollout.chat.messages import user
from rollout.errors import MalformedReply
from rollout.request import MessagePrompt, Reply, Request, TokenPrompt
from rollout.token_fields import RoutedExperts
from transports.fields import ABSENT, EXPERTS, experts_of_npy, mask_of_lists
from transports.http.client import Answer
from transports.large import decode_apart, put_back
from transports.openai import (
    ChatLogprobs,
    Span,
    TokenId,
    TokenLogprob,
    Usage,
    content_logprobs,
    finish_reason,
    merged,
    paired,
    server_message_of,
    weight_spans,
)

CHAT = "/v1/chat/completions"

#: Says how a request of messages would be sampled, the server's own defaults included; newer servers.
RENDER = "/v1/chat/completions/render"
GENERATE = "/inference/v1/generate"
COMPLETIONS = "/v1/completions"
CHAT_TOKENS = "/v1/chat/completions/tokens"

#: Fields that the generate route takes beside `sampling_params`, not in it.
_GENERATE_ROOT = frozenset({"cache_salt", "priority", "request_id", "model", "kv_transfer_params", "features", "nvext"})


class _CompletionLogprobs(msgspec.Struct):
    token_logprobs: list[float | None] | None = None


class _GenerateChoice(msgspec.Struct):
    token_ids: list[TokenId] | None = None
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    weight_versions: list[Span] | None = None
    routed_experts: msgspec.Raw = ABSENT
    sampling_mask: msgspec.Raw = ABSENT


class Place(msgspec.Struct, gc=False):
    """Where an image stands in a prompt."""

    offset: int
    length: int


class _GenerateAnswer(msgspec.Struct):
    choices: list[_GenerateChoice] = []
    prompt_token_ids: list[TokenId] | None = None
    mm_placeholders: dict[str, list[Place]] | None = None
    usage: Usage | None = None
    weight_versions: list[Span] | None = None


class _CompletionChoice(msgspec.Struct):
    token_ids: list[TokenId] | None = None
    prompt_token_ids: list[TokenId] | None = None
    finish_reason: str | None = None
    logprobs: _CompletionLogprobs | None = None
    text: str | None = None
    weight_versions: list[Span] | None = None
    routed_experts: msgspec.Raw = ABSENT


class _CompletionAnswer(msgspec.Struct):
    choices: list[_CompletionChoice] = []
    usage: Usage | None = None


class _ChatChoice(msgspec.Struct):
    token_ids: list[TokenId] | None = None
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    message: dict[str, Any] | None = None
    weight_versions: list[Span] | None = None
    routed_experts: msgspec.Raw = ABSENT


class _ChatAnswer(msgspec.Struct):
    choices: list[_ChatChoice] = []
    prompt_token_ids: list[TokenId] | None = None
    usage: Usage | None = None


class Features(msgspec.Struct):
    """What a rendered prompt has beside text."""

    mm_placeholders: dict[str, list[Place]] = {}


class Rendered(msgspec.Struct):
    """The answer of the route that makes a request of ids: what it leaves out changes nothing."""

    sampling_params: dict[str, Any]
    token_ids: list[TokenId] = []
    features: Features | None = None


class Detokenized(msgspec.Struct):
    """The answer of /detokenize."""

    prompt: str


_GENERATE = msgspec.json.Decoder(_GenerateAnswer)
_COMPLETION = msgspec.json.Decoder(_CompletionAnswer)
_CHAT = msgspec.json.Decoder(_ChatAnswer)


def chat_body(request: Request, model: str) -> dict[str, Any]:
    """The body of a message-in request."""
    prompt = request.prompt
    assert isinstance(prompt, MessagePrompt)
    body = _common(request, model)
    body |= {
        "messages": prompt.json(),
        "logprobs": True,
        "return_token_ids": True,
    }
    if prompt.tools:
        body["tools"] = list(prompt.tools)
        # Tool calls are read here, from the ids. Without this a server started without a tool parser refuses.
        body.setdefault("tool_choice", "none")
    if prompt.template_args:
        body["chat_template_kwargs"] = {**body.get("chat_template_kwargs", {}), **prompt.template_args}
    return body


def generate_body(request: Request, model: str) -> dict[str, Any]:
    """The body of a token-in request by the generate route."""
    prompt = request.prompt
    assert isinstance(prompt, TokenPrompt)
    sampling = {key: value for key, value in request.sampling.items() if key not in _GENERATE_ROOT}
    sampling["logprobs"] = _alternatives(sampling.get("logprobs"))
    if request.max_tokens is not None:
        sampling["max_tokens"] = request.max_tokens
    if request.routed_experts_from:
        sampling["routed_experts_prompt_start"] = request.routed_experts_from
    if stops := merged(sampling.get("stop_token_ids"), request.stop_token_ids):
        sampling["stop_token_ids"] = stops
    if not sampling.get("stop"):  # texts are made here, of the ids; only stop strings need the server's
        sampling.setdefault("detokenize", False)
    body = {key: value for key, value in request.sampling.items() if key in _GENERATE_ROOT}
    body |= {"model": model, "token_ids": prompt.json(), "sampling_params": sampling, "request_id": request.request_id}
    if prompt.images:
        body["content_parts"] = [{"type": "image_url", "url": url} for url in prompt.images]
    if prompt.images or request.echo_prompt:
        body["return_token_ids"] = True
    return _with_routing(body, request)


def _alternatives(asked: object) -> int:
    """How many alternatives each logprob comes with: the caller's, or none, which spares a server a ranking."""
    return asked if isinstance(asked, int) and not isinstance(asked, bool) else 0


def completions_body(request: Request, model: str) -> dict[str, Any]:
    """The body of a token-in request by the completions route."""
    prompt = request.prompt
    assert isinstance(prompt, TokenPrompt)
    return {**_common(request, model), "prompt": prompt.json(), "logprobs": 0, "return_token_ids": True}


def chat_tokens_body(request: Request, model: str) -> dict[str, Any]:
    """The body of a token-in request on trainers' patched servers: the message is not rendered there."""
    prompt = request.prompt
    assert isinstance(prompt, TokenPrompt)
    body = _common(request, model)
    placeholder = {"messages": [user(".").as_openai()], "tokens": prompt.json()}
    return {**body, **placeholder, "logprobs": True, "return_token_ids": True}


def _common(request: Request, model: str) -> dict[str, Any]:
    body = {**request.sampling, "model": model}
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
        body.pop("max_completion_tokens", None)
    if stops := merged(body.get("stop_token_ids"), request.stop_token_ids):
        body["stop_token_ids"] = stops
    if request.routed_experts_from:  # from 0 is what a server does by itself, also one that does not know the field
        body["routed_experts_prompt_start"] = request.routed_experts_from
    return _with_routing(body, request)


def _with_routing(body: dict[str, Any], request: Request) -> dict[str, Any]:
    if request.cache_salt is not None:
        body["cache_salt"] = request.cache_salt
    if request.priority is not None:
        body["priority"] = request.priority
    return body


def read_chat(answer: Answer, request: Request | None = None, path: str = CHAT) -> Reply:
    """Reads a message-in answer (and that of the patched token route). Raises MalformedReply.

    What a server reports of each token is read where the request asks for it, here and in the other routes.
    """
    value, experts = decode_apart(_CHAT, answer, path, EXPERTS)
    choice = _only(value.choices, path, answer)
    ids = choice.token_ids
    usage = value.usage or Usage()
    return Reply(
        completion_ids=ids,
        logprobs=None if ids is None else paired(ids, content_logprobs(choice.logprobs)),
        prompt_ids=value.prompt_token_ids,
        finish_reason=finish_reason(choice.finish_reason),
        message=server_message_of(choice.message),
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        weight_versions=weight_spans(choice.weight_versions),
        routed_experts=_experts(put_back(choice.routed_experts, experts), request, path),
        request_s=answer.elapsed_s,
    )


def read_generate(answer: Answer, request: Request | None = None) -> Reply:
    """Reads an answer of the generate route, in its older and newer forms. Raises MalformedReply."""
    value, experts = decode_apart(_GENERATE, answer, GENERATE, EXPERTS)
    choice = _only(value.choices, GENERATE, answer)
    ids = choice.token_ids
    if ids is None:
        raise MalformedReply(f"{GENERATE}: the answer has no token_ids")
    logprobs = choice.logprobs.content if choice.logprobs else None
    if logprobs and [entry.token_id for entry in logprobs] != ids:
        _check_named(ids, logprobs)
    usage = value.usage or Usage()
    return Reply(
        completion_ids=ids,
        logprobs=paired(ids, content_logprobs(choice.logprobs)),
        prompt_ids=value.prompt_token_ids,
        image_spans=image_spans(value.mm_placeholders),
        finish_reason=finish_reason(choice.finish_reason),
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        weight_versions=weight_spans(choice.weight_versions or value.weight_versions),
        routed_experts=_experts(put_back(choice.routed_experts, experts), request, GENERATE),
        sampling_mask=mask_of_lists(choice.sampling_mask, GENERATE) if request and request.sampling_mask else None,
        request_s=answer.elapsed_s,
    )


def image_spans(places: dict[str, list[Place]] | None) -> tuple[tuple[int, int], ...] | None:
    """Where a prompt's images stand, in order; None where it is not said, or what stands there is no image."""
    if places is None or places.keys() - {"image"}:
        return None
    return tuple(sorted((place.offset, place.length) for place in places.get("image", ())))


def render_body(body: dict[str, Any]) -> dict[str, Any]:
    """What asks how a message-in body is read, without the images' own data in the answer."""
    asked = {key: value for key, value in body.items() if key not in ("logprobs", "top_logprobs", "return_token_ids")}
    return {**asked, "mm_payload": "none"}


def _check_named(ids: Sequence[int], logprobs: Sequence[TokenLogprob]) -> None:
    """Older servers name the token in its text, or not at all. Raises MalformedReply where it is another."""
    for sampled, entry in zip(ids, logprobs, strict=False):
        named = entry.token_id
        said = entry.token if named is None and entry.token and entry.token.startswith("token_id:") else f"{named}"
        if said not in ("None", f"{sampled}", f"token_id:{sampled}"):
            raise MalformedReply(f"{GENERATE}: a logprob is of token {said[:40]} where {sampled} was sampled")


def read_completions(answer: Answer, request: Request | None = None) -> Reply:
    """Reads an answer of the completions route. Raises MalformedReply."""
    value, experts = decode_apart(_COMPLETION, answer, COMPLETIONS, EXPERTS)
    choice = _only(value.choices, COMPLETIONS, answer)
    ids = choice.token_ids
    if ids is None:
        raise MalformedReply(f"{COMPLETIONS}: the answer has no token_ids; is this vLLM older than return_token_ids?")
    usage = value.usage or Usage()
    return Reply(
        completion_ids=ids,
        logprobs=paired(ids, choice.logprobs.token_logprobs if choice.logprobs else None),
        prompt_ids=choice.prompt_token_ids,
        finish_reason=finish_reason(choice.finish_reason),
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        weight_versions=weight_spans(choice.weight_versions),
        routed_experts=_experts(put_back(choice.routed_experts, experts), request, COMPLETIONS),
        request_s=answer.elapsed_s,
    )


def _experts(field: msgspec.Raw, request: Request | None, path: str) -> RoutedExperts | None:
    """A server that was started so answers them with everything, wanted or not."""
    if request is None or request.routed_experts_from is None:
        return None
    return experts_of_npy(field, path)


def _only(choices: list[Any], path: str, answer: Answer) -> Any:
    if not choices:
        start = answer.body[:200].decode("utf-8", "replace")
        raise MalformedReply(f"{path}: the answer has no choices: {start}", status=answer.status, body=start)
    return choices[0]


class TokenRoute(NamedTuple):
    """One way in for ids."""

    path: str
    body: Callable[[Request, str], dict[str, Any]]
    read: Callable[[Answer, Request], Reply]


#: Best first.
TOKEN_ROUTES = (
    TokenRoute(GENERATE, generate_body, read_generate),
    TokenRoute(COMPLETIONS, completions_body, read_completions),
    TokenRoute(CHAT_TOKENS, chat_tokens_body, lambda answer, request: read_chat(answer, request, CHAT_TOKENS)),
)

"""Dynamo's dialect: one route for both ways in, and an `nvext` object beside OpenAI's fields.

Ids come back only where they are asked for: from the engine (`engine_data`, with its logprobs) behind a vLLM
worker, else from the frontend's own fields. Ids and logprobs are never taken from two sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from rollout.chat.messages import user
from rollout.errors import MalformedReply, ServerError, TransportError
from rollout.log import get_logger
from rollout.request import MessagePrompt, Reply, Request, TokenPrompt
from rollout.transport import ServerInfo, TransportConfig
from transports import folder
from transports.http.client import Answer, HttpClient, decode
from transports.logprobs import find_mode
from transports.openai import (
    ChatLogprobs,
    ServedTransport,
    TokenId,
    Usage,
    choose_model,
    content_logprobs,
    finish_reason,
    list_models,
    merged,
    opening,
    paired,
    probe_call,
    probe_request,
    server_message_of,
)

CHAT = "/v1/chat/completions"

_log = get_logger(__name__)


class _CacheHit(msgspec.Struct):
    prompt_tokens: int | None = None
    reused_tokens: int | None = None


class _EngineData(msgspec.Struct):
    prompt_token_ids: list[TokenId] | None = None
    completion_token_ids: list[TokenId] | None = None
    completion_logprobs: list[float | None] | None = None
    kv_cache_hit: _CacheHit | None = None


class _Nvext(msgspec.Struct):
    engine_data: _EngineData | None = None
    prompt_token_ids: list[TokenId] | None = None
    completion_token_ids: list[TokenId] | None = None


class _Choice(msgspec.Struct):
    token_ids: list[TokenId] | None = None
    """Not asked for (`return_token_ids` is refused); compared where a deployment adds it."""
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    message: dict[str, Any] | None = None


class _Chat(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    nvext: _Nvext | None = None


_CHAT = msgspec.json.Decoder(_Chat)


def chat_body(request: Request, model: str) -> dict[str, Any]:
    """The body of a request, token-in or message-in. The caller's own fields stay as they are."""
    body: dict[str, Any] = {**request.sampling, "model": model, "stream": False, "logprobs": True}
    nvext = dict(body.get("nvext") or {})
    prompt = request.prompt
    if isinstance(prompt, TokenPrompt):
        # The frontend demands a message; with token_data it does not render it. Tools are in the ids already.
        body["messages"] = [user(".").as_openai()]
        nvext["token_data"] = prompt.json()
        body.pop("tools", None)
    else:
        body["messages"] = prompt.json()
        if prompt.tools:
            body["tools"] = list(prompt.tools)
        if prompt.template_args:
            body["chat_template_kwargs"] = {**body.get("chat_template_kwargs", {}), **prompt.template_args}
    wanted = ["engine_data", "completion_token_ids"]
    if request.echo_prompt or isinstance(prompt, MessagePrompt):
        wanted.append("prompt_token_ids")
    nvext["extra_fields"] = merged(nvext.get("extra_fields"), wanted)
    if request.priority is not None:
        nvext["agent_hints"] = {**(nvext.get("agent_hints") or {}), "priority": request.priority}
    body["nvext"] = nvext
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
        body.pop("max_completion_tokens", None)
    if stops := merged(body.get("stop_token_ids"), request.stop_token_ids):
        body["stop_token_ids"] = stops
    if request.cache_salt is not None:
        body["cache_salt"] = request.cache_salt
    return body


def session_headers(request: Request) -> dict[str, str]:
    """The session, by which the router keeps a trajectory on one worker."""
    return {"x-dynamo-session-id": request.session_id, "x-request-id": request.request_id}


def read_chat(answer: Answer) -> Reply:
    """Reads an answer. Raises MalformedReply.

    Where the frontend reports ids but nothing computes logprobs (the mocker), each logprob is NaN, which no
    loss can use unseen.
    """
    value: _Chat = decode(_CHAT, answer, CHAT)
    if not value.choices:
        start = answer.body[:200].decode("utf-8", "replace")
        raise MalformedReply(f"{CHAT}: the answer has no choices: {start}", status=answer.status, body=start)
    choice, nvext, usage = value.choices[0], value.nvext or _Nvext(), value.usage or Usage()
    ids, logprobs, prompt_ids = _sampled(nvext, choice)
    cached = usage.cached_tokens
    if cached is None and nvext.engine_data and nvext.engine_data.kv_cache_hit:
        cached = nvext.engine_data.kv_cache_hit.reused_tokens
    return Reply(
        completion_ids=ids,
        logprobs=logprobs,
        without_logprobs=logprobs is not None and any(map(math.isnan, logprobs)),
        prompt_ids=prompt_ids,
        finish_reason=finish_reason(choice.finish_reason),
        message=server_message_of(choice.message),
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=cached,
        request_s=answer.elapsed_s,
    )


def _sampled(nvext: _Nvext, choice: _Choice) -> tuple[list[int] | None, list[float] | None, list[int] | None]:
    """(ids, logprobs, prompt ids), all from the engine or all from the frontend."""
    engine, frontend_ids = nvext.engine_data, nvext.completion_token_ids
    told = [engine.completion_token_ids if engine is not None else None, frontend_ids, choice.token_ids]
    if len({tuple(ids) for ids in told if ids is not None}) > 1:
        raise MalformedReply("engine_data, nvext and the choice disagree on the sampled ids")
    if engine is not None and engine.completion_token_ids is not None:
        ids = engine.completion_token_ids
        return ids, paired(ids, engine.completion_logprobs), engine.prompt_token_ids or nvext.prompt_token_ids
    if frontend_ids is None:
        return None, None, nvext.prompt_token_ids
    own = content_logprobs(choice.logprobs)
    logprobs = [math.nan] * len(frontend_ids) if own is None else paired(frontend_ids, own)
    return frontend_ids, logprobs, nvext.prompt_token_ids


class DynamoTransport(ServedTransport):
    """Carries prompts to a Dynamo frontend."""

    async def generate(self, request: Request) -> Reply:
        """See `rollout.transport.Transport`."""
        body = chat_body(request, self.info.model)
        return read_chat(await self.client.post(CHAT, body, headers=session_headers(request)))

    async def tokenize(self, prompt: MessagePrompt, *, add_generation_prompt: bool) -> list[int]:
        """Dynamo has no /tokenize: raises TransportError."""
        raise TransportError(f"{self.client.base_url}: Dynamo has no /tokenize; name a tokenizer by --tokenizer")

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Dynamo has no /detokenize: raises TransportError."""
        raise TransportError(f"{self.client.base_url}: Dynamo has no /detokenize; name a tokenizer by --tokenizer")


class _Probe:
    """Sees what a frontend does."""

    def __init__(self, config: TransportConfig, client: HttpClient) -> None:
        self._config = config
        self.client = client
        self._refusal: str | None = None
        """What it said to the first request that it did not answer."""

    async def run(self) -> ServerInfo:
        """Raises ServerError, ConfigError."""
        card = choose_model(await list_models(self.client), self._config.model, self.client.base_url)
        info = ServerInfo(dialect="dynamo", model=card.id, models=[card.id])
        info.max_model_len = card.context_window or card.max_model_len or None
        info.tokenizer, info.owned_by = card.root, card.owned_by
        info.vocab_size = await folder.vocab_size(card.root)
        if (tried := await self._try(MessagePrompt(messages=[user("Hi.")]), info)) is not None:
            answer, reply = tried
            info.reports_prompt_ids = reply.prompt_ids is not None
            info.reports_completion_ids = reply.completion_ids is not None
            info.reports_cached_tokens = reply.cached_tokens is not None
            info.ids_source = _ids_source(answer)
        if (tried := await self._try(TokenPrompt([1, 2, 1]), info)) is not None:
            _, reply = tried
            if reply.completion_ids is not None:
                info.token_route, info.token_routes = CHAT, [CHAT]
                info.reports_cached_tokens = info.reports_cached_tokens or reply.cached_tokens is not None
                info.keeps_stop_token = await self._keeps_stop(reply.completion_ids, info)
        if info.reports_completion_ids or info.token_routes:
            prompt = probe_request(MessagePrompt(messages=[user("Hi.")]))
            info.logprobs_mode = await find_mode(self.client, CHAT, chat_body(prompt, info.model))
        if not info.token_routes and not info.reports_completion_ids and self._refusal is not None:
            raise ServerError(f"{self.client.base_url} lists {card.id!r} but completes nothing: {self._refusal}")
        return info

    async def _keeps_stop(self, first: list[int], info: ServerInfo) -> bool | None:
        """Whether a stop token is among the ids; None where the greedy token does not come twice (the mocker)."""
        tried = await self._try(TokenPrompt([1, 2, 1]), info, stop_token_ids=first, max_tokens=2)
        if tried is None or tried[1].finish_reason != "stop":
            return None
        return tried[1].completion_ids == first

    async def _try(
        self, prompt: TokenPrompt | MessagePrompt, info: ServerInfo, **changes: Any
    ) -> tuple[Answer, Reply] | None:
        try:
            body = chat_body(probe_request(prompt, **changes), info.model)
            answer = await probe_call(self.client, CHAT, body)
            return answer, read_chat(answer)
        except TransportError as error:
            _log.warning("probe_failed", path=CHAT, error=str(error))
            self._refusal = self._refusal or str(error)
            return None


def _ids_source(answer: Answer) -> str | None:
    nvext = decode(_CHAT, answer, CHAT).nvext
    if nvext is None:
        return None
    if nvext.engine_data is not None and nvext.engine_data.completion_token_ids is not None:
        return "engine_data"
    return "nvext" if nvext.completion_token_ids is not None else None


async def open(config: TransportConfig, client: HttpClient | None = None) -> DynamoTransport:
    """Entry point `dynamo`. See `rollout.transport.Open`. `client` takes the place of one of its own."""
    async with opening(config, client) as client:
        return DynamoTransport(client, await _Probe(config, client).run())

"""Dynamo's dialect: one route for both ways in, an `nvext` object beside OpenAI's fields, and its engines' own routes.

Ids come back only where they are asked for: from the engine (`engine_data`, with its logprobs) behind a vLLM
worker, else from the frontend's own fields. Ids and logprobs are never taken from two sources.

vLLM's generate route is served by those of a frontend's workers that are vLLM's. It takes all that vLLM samples by, and
says neither cached tokens nor how a prompt was read, so it is used only where it is asked for; and so is SGLang's.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from rollout.chat.messages import user
from rollout.errors import (
    MalformedReply,
    PromptTooLong,
    RequestRefused,
    ServerBusy,
    ServerError,
    TransportError,
)
from rollout.log import get_logger
from rollout.request import MessagePrompt, Reply, Request, TokenPrompt
from rollout.transport import ServerInfo, TransportConfig
from transports import folder
from transports.fields import tell_unreported
from transports.http.client import Answer, HttpClient, decode
from transports.logprobs import find_mode
from transports.openai import (
    ChatLogprobs,
    ServedTransport,
    TokenId,
    Usage,
    choose_model,
    choose_route,
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
from transports.sglang.streamed import read_stream, stream_body
from transports.sglang.wire import GENERATE as STREAM
from transports.vllm.wire import GENERATE, generate_body, read_generate

CHAT = "/v1/chat/completions"

#: Routes that only some of a frontend's workers serve: vLLM's, and SGLang's, which is streamed.
_NATIVE = (GENERATE, STREAM)

#: So long prompts go by `nvext` after the generate route was found gone; then it is tried again.
GONE_S = 30.0

#: What the frontend answers on the generate route when the last worker that serves it has gone: 500 at once, 503 within
#: a second, 404 when it is known; 404 or 405 also where the frontend was started again without the route, 501 where
#: a worker does not know it.
_GONE = frozenset({404, 405, 500, 501, 502, 503})

#: What the generate route says of every refusal that is its worker's.
_NO_REASON = "Invalid request"
_WHY = (
    "Dynamo does not say why on this route: perhaps an id that the model does not have, or a parameter that vLLM "
    f"refuses; its worker's log says which, and so does --token-route {CHAT}"
)

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
    return {"x-dynamo-session-id": request.session_id, "x-request-id": request.request_id, **request.trace}


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

    def __init__(
        self, client: HttpClient, info: ServerInfo, *, clock: Callable[[], float] = time.monotonic, **settings: Any
    ) -> None:
        super().__init__(client, info, **settings)
        self.detours: Counter[str] = Counter()
        """Prompts of ids that went by `nvext` as no worker served the generate route, by the status that said so."""
        self._clock = clock
        self._gone: str | None = None
        """Why the generate route is not asked; None while it answers."""
        self._again_at = 0.0

    async def generate(self, request: Request) -> Reply:
        """See `rollout.transport.Transport`.

        A frontend may have workers that serve the generate route beside others that do not, and may lose the last one
        that does. `nvext` is served by all of them, so the prompt goes there meanwhile: the same ids, and the same
        session.
        """
        if self.info.token_route in _NATIVE and isinstance(request.prompt, TokenPrompt):
            if self._gone is None or self._clock() >= self._again_at:
                self._again_at = self._clock() + GONE_S  # until this one is answered the others go by nvext
                try:
                    return await self._generate(request, request.prompt)
                except (ServerBusy, RequestRefused) as error:
                    if error.status not in _GONE:
                        raise
                    self._detour(error)
            else:
                self.detours[self._gone] += 1
        body = chat_body(request, self.info.model)
        return await self._read(read_chat, await self.client.post(CHAT, body, headers=session_headers(request)))

    async def _generate(self, request: Request, prompt: TokenPrompt) -> Reply:
        """By an engine's own route. What it refuses without a reason is refused here, or the refusal says what it may
        be."""
        length, longest = len(prompt.ids), self.info.max_model_len
        if longest is not None and length >= longest:
            raise PromptTooLong(f"the prompt's {length} tokens do not fit the context of {longest}")
        try:
            reply = await self._by_its_route(request)
        except RequestRefused as error:
            if error.status == 400 and str(error).endswith(_NO_REASON):
                raise RequestRefused(f"{error}: {_WHY}", status=error.status, body=error.body) from error
            raise
        if self._gone is not None:
            self._gone = None
            _log.warning("token_route_back", path=self.info.token_route, detours=self.detours.total())
        return reply

    async def _by_its_route(self, request: Request) -> Reply:
        headers = session_headers(request)
        if self.info.token_route == STREAM:
            body = stream_body(request, self.info.max_model_len)
            return await self._read(read_stream, await self.client.post(STREAM, body, headers=headers))
        body = generate_body(request, self.info.model)
        return await self._read(read_generate, await self.client.post(GENERATE, body, headers=headers), request)

    def _detour(self, error: TransportError) -> None:
        """Counts it; and, where it says more than that something went wrong, leaves the route for a while."""
        cause = str(error.status)
        self.detours[cause] += 1
        (_log.warning if self.detours[cause] == 1 else _log.debug)(
            "token_route_gone", path=self.info.token_route, instead=CHAT, error=str(error)
        )
        if self._gone is not None or error.status != 500:
            self._gone = cause

    async def aclose(self) -> None:
        """See `rollout.transport.Transport`."""
        if self.detours:
            _log.warning("token_route_detours", path=self.info.token_route, instead=CHAT, causes=dict(self.detours))
            self.detours.clear()
        await super().aclose()

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
        self._reports = False, False
        """Whether the generate route was seen to answer routed experts, and sampling masks."""

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
                info.token_routes.append(CHAT)
                info.reports_cached_tokens = info.reports_cached_tokens or reply.cached_tokens is not None
                info.keeps_stop_token = await self._keeps_stop(reply.completion_ids, info)
        if await self._generates(info):
            info.token_routes.append(GENERATE)
        if await self._streams():
            info.token_routes.append(STREAM)
        if info.reports_completion_ids or info.token_routes:
            prompt = probe_request(MessagePrompt(messages=[user("Hi.")]))
            info.logprobs_mode = await find_mode(self.client, CHAT, chat_body(prompt, info.model))
        if not info.token_routes and not info.reports_completion_ids and self._refusal is not None:
            raise ServerError(f"{self.client.base_url} lists {card.id!r} but completes nothing: {self._refusal}")
        info.token_route = choose_route(info, self._config.token_route, self.client.base_url)
        if info.token_route == GENERATE:
            info.reports_routed_experts, info.reports_sampling_mask = self._reports
            info.masks_by_ids_only = info.reports_sampling_mask
        return info

    async def _generates(self, info: ServerInfo) -> bool:
        """Whether a worker serves vLLM's route; the frontend lists it where none does, so it is called."""
        try:
            request = probe_request(TokenPrompt([1, 2, 1]), routed_experts_from=0, sampling_mask=True)
            answer = await probe_call(self.client, GENERATE, generate_body(request, info.model))
            reply = read_generate(answer, request)
            self._reports = reply.routed_experts is not None, reply.sampling_mask is not None
            return bool(reply.completion_ids)
        except TransportError as error:
            _log.debug("route_absent", path=GENERATE, error=str(error))
            return False

    async def _streams(self) -> bool:
        """Whether a worker serves SGLang's route."""
        try:
            body = stream_body(probe_request(TokenPrompt([1, 2, 1])), None)
            return bool(read_stream(await probe_call(self.client, STREAM, body)).completion_ids)
        except TransportError as error:
            _log.debug("route_absent", path=STREAM, error=str(error))
            return False

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
        info = await _Probe(config, client).run()
        only = (
            f"of Dynamo's routes only vLLM's does: --token-route {GENERATE}, its workers started as vLLM's manual says"
        )
        tell_unreported(config, info, routed_experts=only, sampling_mask=only)
        return DynamoTransport(client, info)

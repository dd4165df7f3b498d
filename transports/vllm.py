"""vLLM's dialect: message-in by chat, token-in by the best of three routes.

    /inference/v1/generate        ids in and out, weight versions; newer servers, with --enable-scale-out
    /v1/completions               a list of ids as prompt; every version
    /v1/chat/completions/tokens   ids beside messages; trainers' patched servers

The bodies and the readers are pure functions; `VllmTransport` carries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import anyio
import msgspec
import structlog

from rollout.errors import ConfigError, MalformedReply, TransportError
from rollout.messages import user
from rollout.transport import MessagePrompt, Reply, Request, ServerInfo, TokenPrompt, TransportConfig
from transports.common import (
    ChatLogprobs,
    Span,
    Usage,
    choose_model,
    client_of,
    content_logprobs,
    finish_reason,
    list_models,
    merged,
    paired,
    server_message_of,
    weight_spans,
)
from transports.http import Answer, HttpClient, decode

CHAT = "/v1/chat/completions"
GENERATE = "/inference/v1/generate"
COMPLETIONS = "/v1/completions"
CHAT_TOKENS = "/v1/chat/completions/tokens"

#: Fields that the generate route takes beside `sampling_params`, not in it.
_GENERATE_ROOT = frozenset({"cache_salt", "priority", "request_id", "model", "kv_transfer_params", "features"})

_log = structlog.get_logger(__name__)


class _CompletionLogprobs(msgspec.Struct):
    token_logprobs: list[float | None] | None = None


class _GenerateChoice(msgspec.Struct):
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    weight_versions: list[Span] | None = None


class _GenerateAnswer(msgspec.Struct):
    choices: list[_GenerateChoice] = []
    usage: Usage | None = None
    weight_versions: list[Span] | None = None


class _CompletionChoice(msgspec.Struct):
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: _CompletionLogprobs | None = None
    text: str | None = None
    weight_versions: list[Span] | None = None


class _CompletionAnswer(msgspec.Struct):
    choices: list[_CompletionChoice] = []
    usage: Usage | None = None


class _ChatChoice(msgspec.Struct):
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    message: dict[str, Any] | None = None
    weight_versions: list[Span] | None = None


class _ChatAnswer(msgspec.Struct):
    choices: list[_ChatChoice] = []
    prompt_token_ids: list[int] | None = None
    usage: Usage | None = None


class _Tokenized(msgspec.Struct):
    tokens: list[int]


class _Detokenized(msgspec.Struct):
    prompt: str


_GENERATE = msgspec.json.Decoder(_GenerateAnswer)
_COMPLETION = msgspec.json.Decoder(_CompletionAnswer)
_CHAT = msgspec.json.Decoder(_ChatAnswer)
_TOKENIZED = msgspec.json.Decoder(_Tokenized)
_DETOKENIZED = msgspec.json.Decoder(_Detokenized)
_OPENAPI = msgspec.json.Decoder(dict[str, Any])


def chat_body(request: Request, model: str) -> dict[str, Any]:
    """The body of a message-in request."""
    prompt = request.prompt
    assert isinstance(prompt, MessagePrompt)
    body = _common(request, model)
    body |= {
        "messages": [message.as_openai() for message in prompt.messages],
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
    sampling["logprobs"] = max(1, sampling.get("logprobs") or 1)
    if request.max_tokens is not None:
        sampling["max_tokens"] = request.max_tokens
    if stops := merged(sampling.get("stop_token_ids"), request.stop_token_ids):
        sampling["stop_token_ids"] = stops
    body = {key: value for key, value in request.sampling.items() if key in _GENERATE_ROOT}
    body |= {"model": model, "token_ids": prompt.ids, "sampling_params": sampling, "request_id": request.request_id}
    return _with_routing(body, request)


def completions_body(request: Request, model: str) -> dict[str, Any]:
    """The body of a token-in request by the completions route."""
    prompt = request.prompt
    assert isinstance(prompt, TokenPrompt)
    return {**_common(request, model), "prompt": prompt.ids, "logprobs": 0, "return_token_ids": True}


def chat_tokens_body(request: Request, model: str) -> dict[str, Any]:
    """The body of a token-in request on trainers' patched servers: the message is not rendered there."""
    prompt = request.prompt
    assert isinstance(prompt, TokenPrompt)
    body = _common(request, model)
    placeholder = {"messages": [user(".").as_openai()], "tokens": prompt.ids}
    return {**body, **placeholder, "logprobs": True, "return_token_ids": True}


def _common(request: Request, model: str) -> dict[str, Any]:
    body = {**request.sampling, "model": model}
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
        body.pop("max_completion_tokens", None)
    if stops := merged(body.get("stop_token_ids"), request.stop_token_ids):
        body["stop_token_ids"] = stops
    return _with_routing(body, request)


def _with_routing(body: dict[str, Any], request: Request) -> dict[str, Any]:
    if request.cache_salt is not None:
        body["cache_salt"] = request.cache_salt
    if request.priority is not None:
        body["priority"] = request.priority
    return body


def read_chat(answer: Answer, path: str = CHAT) -> Reply:
    """Reads a message-in answer (and that of the patched token route). Raises MalformedReply."""
    value: _ChatAnswer = decode(_CHAT, answer, path)
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
        weight_versions=weight_spans(choice.weight_versions, len(ids or ())),
        request_s=answer.elapsed_s,
    )


def read_generate(answer: Answer) -> Reply:
    """Reads an answer of the generate route, in its older and newer forms. Raises MalformedReply."""
    value: _GenerateAnswer = decode(_GENERATE, answer, GENERATE)
    choice = _only(value.choices, GENERATE, answer)
    ids = choice.token_ids
    if ids is None:
        raise MalformedReply(f"{GENERATE}: the answer has no token_ids")
    logprobs = choice.logprobs.content if choice.logprobs else None
    for sampled, entry in zip(ids, logprobs or (), strict=False):
        named = entry.token_id
        if named is None and entry.token is not None and entry.token.startswith("token_id:"):
            named = int(entry.token.removeprefix("token_id:"))
        if named is not None and named != sampled:
            raise MalformedReply(f"{GENERATE}: a logprob is of token {named} where {sampled} was sampled")
    usage = value.usage or Usage()
    return Reply(
        completion_ids=ids,
        logprobs=paired(ids, content_logprobs(choice.logprobs)),
        finish_reason=finish_reason(choice.finish_reason),
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        weight_versions=weight_spans(choice.weight_versions or value.weight_versions, len(ids)),
        request_s=answer.elapsed_s,
    )


def read_completions(answer: Answer) -> Reply:
    """Reads an answer of the completions route. Raises MalformedReply."""
    value: _CompletionAnswer = decode(_COMPLETION, answer, COMPLETIONS)
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
        weight_versions=weight_spans(choice.weight_versions, len(ids)),
        request_s=answer.elapsed_s,
    )


def _only(choices: list[Any], path: str, answer: Answer) -> Any:
    if not choices:
        start = answer.body[:200].decode("utf-8", "replace")
        raise MalformedReply(f"{path}: the answer has no choices: {start}", status=answer.status, body=start)
    return choices[0]


class TokenRoute(NamedTuple):
    """One way in for ids."""

    path: str
    body: Callable[[Request, str], dict[str, Any]]
    read: Callable[[Answer], Reply]


#: Best first.
TOKEN_ROUTES = (
    TokenRoute(GENERATE, generate_body, read_generate),
    TokenRoute(COMPLETIONS, completions_body, read_completions),
    TokenRoute(CHAT_TOKENS, chat_tokens_body, lambda answer: read_chat(answer, CHAT_TOKENS)),
)


class VllmTransport:
    """Carries prompts to a vLLM server."""

    def __init__(self, config: TransportConfig, client: HttpClient | None = None) -> None:
        self._config = config
        self.client = client or client_of(config)
        self._info: ServerInfo | None = None
        self._route: TokenRoute | None = None
        self._lock = anyio.Lock()

    def __repr__(self) -> str:
        return f"<VllmTransport {self.client.base_url} {self._route.path if self._route else 'no token route'}>"

    async def connect(self) -> ServerInfo:
        """See `rollout.transport.Transport`."""
        async with self._lock:
            if self._info is None:
                self._info = await self._probe()
        return self._info

    async def generate(self, request: Request) -> Reply:
        """See `rollout.transport.Transport`."""
        info = self._info or await self.connect()
        headers = {"x-request-id": request.request_id, "x-session-id": request.session_id}
        if isinstance(request.prompt, MessagePrompt):
            return read_chat(await self.client.post(CHAT, chat_body(request, info.model), headers=headers))
        if self._route is None:
            raise ConfigError(f"{self.client.base_url} has no token-in route")
        body = self._route.body(request, info.model)
        return self._route.read(await self.client.post(self._route.path, body, headers=headers))

    async def tokenize(self, prompt: MessagePrompt, *, add_generation_prompt: bool) -> list[int]:
        """See `rollout.transport.Transport`."""
        info = self._info or await self.connect()
        body: dict[str, Any] = {
            "model": info.model,
            "messages": [message.as_openai() for message in prompt.messages],
            "add_generation_prompt": add_generation_prompt,
        }
        if prompt.tools:
            body["tools"] = list(prompt.tools)
        if prompt.template_args:
            body["chat_template_kwargs"] = dict(prompt.template_args)
        tokenized: _Tokenized = decode(_TOKENIZED, await self.client.post("/tokenize", body), "/tokenize")
        return tokenized.tokens

    async def detokenize(self, ids: Sequence[int]) -> str:
        """See `rollout.transport.Transport`."""
        info = self._info or await self.connect()
        answer = await self.client.post("/detokenize", {"model": info.model, "tokens": list(ids)})
        text: str = decode(_DETOKENIZED, answer, "/detokenize").prompt
        return text

    async def pause(self, mode: str = "keep") -> None:
        """Stops decoding: `keep` freezes what runs, `wait` lets it end, `abort` ends it.

        This and the next two need a server started with VLLM_SERVER_DEV_MODE=1.
        """
        await self.client.post(f"/pause?mode={mode}", {})

    async def resume(self) -> None:
        """Goes on after `pause`."""
        await self.client.post("/resume", {})

    async def update_weights(self, version: str, path: str | None) -> None:
        """Loads the weights of a folder that the server can read, and names their version."""
        if path is not None:
            await self.client.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}})
        await self.client.post("/update_weight_version", {"new_version": version})

    async def aclose(self) -> None:
        await self.client.aclose()

    async def _probe(self) -> ServerInfo:
        card = choose_model(await list_models(self.client), self._config.model, self.client.base_url)
        info = ServerInfo(dialect="vllm", model=card.id, models=[card.id], max_model_len=card.max_model_len)
        info.tokenizer = card.root
        info.version = await self._version()
        paths = await self._paths()
        info.can_tokenize = {"/tokenize", "/detokenize"} <= paths
        await self._probe_messages(info)
        for route in TOKEN_ROUTES:
            if (not paths or route.path in paths) and await self._probe_route(route, info):
                info.token_routes.append(route.path)
        self._route = self._choose_route(info)
        info.token_route = self._route.path if self._route else None
        return info

    def _choose_route(self, info: ServerInfo) -> TokenRoute | None:
        forced = self._config.token_route
        if forced is not None and forced not in info.token_routes:
            working = ", ".join(info.token_routes) or "none"
            raise ConfigError(f"{self.client.base_url} has no token route {forced!r}; those that work: {working}")
        chosen = forced or next(iter(info.token_routes), None)
        return next((route for route in TOKEN_ROUTES if route.path == chosen), None)

    async def _version(self) -> str | None:
        try:
            answer = await self.client.get("/version", retries=0)
            version = msgspec.json.decode(answer.body, type=dict[str, Any]).get("version")
        except (TransportError, msgspec.DecodeError):
            return None
        return str(version) if version else None

    async def _paths(self) -> frozenset[str]:
        """The server's routes; empty where it does not list them."""
        try:
            answer = await self.client.get("/openapi.json", retries=0)
            return frozenset(decode(_OPENAPI, answer, "/openapi.json").get("paths", ()))
        except TransportError:
            return frozenset()

    async def _probe_messages(self, info: ServerInfo) -> None:
        prompt = MessagePrompt(messages=[user("Hi.")])
        try:
            reply = read_chat(await self.client.post(CHAT, chat_body(_probe_request(prompt), info.model), retries=0))
        except TransportError as error:
            _log.warning("probe_failed", path=CHAT, error=str(error))
            return
        info.reports_prompt_ids = reply.prompt_ids is not None
        info.reports_completion_ids = reply.completion_ids is not None
        info.reports_cached_tokens = reply.cached_tokens is not None
        info.ids_source = "choice" if reply.completion_ids is not None else None

    async def _probe_route(self, route: TokenRoute, info: ServerInfo) -> bool:
        prompt = TokenPrompt([1, 2, 1])
        try:
            reply = await self._call(route, _probe_request(prompt), info.model)
            if info.keeps_stop_token is None and reply.completion_ids:
                info.keeps_stop_token = await self._keeps_stop(route, prompt, reply.completion_ids[0], info.model)
        except TransportError as error:
            # Newer servers list the generate route but answer 403 unless it is enabled.
            _log.debug("route_absent", path=route.path, error=str(error))
            return False
        info.reports_weight_versions = info.reports_weight_versions or bool(reply.weight_versions)
        info.reports_cached_tokens = info.reports_cached_tokens or reply.cached_tokens is not None
        return reply.completion_ids is not None

    async def _keeps_stop(self, route: TokenRoute, prompt: TokenPrompt, token: int, model: str) -> bool:
        """Whether a stop token is among the ids: the greedy token is asked for again, as a stop token."""
        reply = await self._call(route, _probe_request(prompt, stop_token_ids=[token], max_tokens=2), model)
        return reply.completion_ids == [token]

    async def _call(self, route: TokenRoute, request: Request, model: str) -> Reply:
        return route.read(await self.client.post(route.path, route.body(request, model), retries=0))


def _probe_request(prompt: TokenPrompt | MessagePrompt, **changes: Any) -> Request:
    fields: Mapping[str, Any] = {"max_tokens": 1, "sampling": {"temperature": 0}, **changes}
    return Request(prompt=prompt, request_id="probe", session_id="probe", **fields)


def create(config: TransportConfig) -> VllmTransport:
    """Entry point `vllm`."""
    return VllmTransport(config)

"""vLLM's routes: chat, completions and generate by ids, tokenize, and the control of weights."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from transports.embedded.chat import ChatError
from transports.embedded.jobs import Completion, Job
from transports.embedded.metrics import metrics_text
from transports.embedded.wire import (
    NEUTRAL,
    Refused,
    RouteSpec,
    SamplingBody,
    Served,
    answer,
    chat_logprobs,
    check_max_tokens,
    new_id,
    read_body,
    run_job,
    text_logprobs,
    usage,
)

#: The release whose behaviour these routes follow.
VERSION = "0.32.0+embedded"


class _Common(SamplingBody, kw_only=True):
    model: str | None = None
    stream: bool | None = False
    cache_salt: str | None = None
    priority: int = 0
    request_id: str | None = None


class _Chat(_Common, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    return_token_ids: bool | None = False
    return_tokens_as_token_ids: bool | None = False
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True


class _Completion(_Common, kw_only=True):
    prompt: str | list[int]
    max_tokens: int | None = 16
    logprobs: int | None = None
    return_token_ids: bool | None = False
    return_tokens_as_token_ids: bool | None = False


class _GenerateSampling(SamplingBody, kw_only=True):
    logprobs: int | None = None


class _Generate(msgspec.Struct, kw_only=True):
    token_ids: list[int]
    sampling_params: _GenerateSampling
    model: str | None = None
    stream: bool | None = False
    cache_salt: str | None = None
    priority: int = 0
    request_id: str | None = None


class _Tokenize(msgspec.Struct, kw_only=True):
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    model: str | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = False


class _Detokenize(msgspec.Struct, kw_only=True):
    tokens: list[int]
    model: str | None = None


class _Abort(msgspec.Struct, kw_only=True):
    request_ids: list[str]


class _Rpc(msgspec.Struct, kw_only=True):
    method: str
    kwargs: dict[str, Any] = {}


class _NewVersion(msgspec.Struct, kw_only=True):
    new_version: str


class VllmRoutes:
    """The handlers; each is a coroutine of one request."""

    def __init__(self, served: Served) -> None:
        self.served = served

    def routes(self) -> list[RouteSpec]:
        """Every route: method, path, handler."""
        return [
            ("GET", "/health", self.health),
            ("GET", "/version", self.version),
            ("GET", "/v1/models", self.models),
            ("GET", "/metrics", self.metrics),
            ("POST", "/v1/chat/completions", self.chat),
            ("POST", "/v1/chat/completions/render", self.render),
            ("POST", "/v1/completions", self.completions),
            ("POST", "/inference/v1/generate", self.generate),
            ("POST", "/inference/v1/abort_requests", self.abort_requests),
            ("POST", "/tokenize", self.tokenize),
            ("POST", "/detokenize", self.detokenize),
            ("POST", "/pause", self.pause),
            ("POST", "/resume", self.resume),
            ("GET", "/is_paused", self.is_paused),
            ("POST", "/collective_rpc", self.collective_rpc),
            ("GET", "/weight_info", self.weight_info),
            ("POST", "/update_weight_version", self.update_weight_version),
        ]

    async def health(self, request: Request) -> Response:
        return Response(status_code=200 if self.served.engine.is_alive else 503)

    async def version(self, request: Request) -> Response:
        return answer({"version": VERSION})

    async def models(self, request: Request) -> Response:
        card = {
            "id": self.served.name,
            "object": "model",
            "created": self.served.created,
            "owned_by": "vllm",
            "root": self.served.root,
            "parent": None,
            "max_model_len": self.served.context,
            "permission": [],
        }
        return answer({"object": "list", "data": [card]})

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse(metrics_text(self.served.engine.stats(), self.served.name, "vllm"))

    async def chat(self, request: Request) -> Response:
        body = await read_body(request, _Chat)
        prompt, asked = self._prompt_and_limit(body)
        job = self._job(prompt, body, request, "chatcmpl", max_tokens=asked, top_logprobs=body.top_logprobs or 0)
        completion = await run_job(self.served, job, request)
        logprobs = None
        if body.logprobs:
            logprobs = chat_logprobs(self.served.chat, completion, ids_as_tokens=bool(body.return_tokens_as_token_ids))
        choice = self._choice(completion, body, logprobs)
        choice["message"] = {
            "role": "assistant",
            "content": self.served.text(completion, body),
            "refusal": None,
            "tool_calls": [],
            "reasoning": None,
        }
        out = self._envelope(job, "chat.completion", choice, completion)
        out["prompt_token_ids"] = prompt if body.return_token_ids else None
        return answer(out)

    async def render(self, request: Request) -> Response:
        """The request of ids that a request of messages comes to, with the server's own sampling defaults."""
        body = await read_body(request, _Chat)
        prompt, asked = self._prompt_and_limit(body)
        room = self.served.context - len(prompt)
        sampling = self.served.sampling(body, self.served.defaults)
        params = {name: value for name, value in sampling.items() if value != NEUTRAL[name]}
        params["max_tokens"] = room if asked is None else min(asked, room)
        request_id = new_id("chatcmpl", body.request_id)
        name = self.served.name
        return answer({"request_id": request_id, "token_ids": prompt, "sampling_params": params, "model": name})

    async def completions(self, request: Request) -> Response:
        body = await read_body(request, _Completion)
        self._check(body.model, body.stream)
        ids = self.served.chat.encode(body.prompt) if isinstance(body.prompt, str) else body.prompt
        ids = self.served.check_ids(ids)
        self._check_room(len(ids), body.max_tokens)
        job = self._job(ids, body, request, "cmpl", max_tokens=body.max_tokens, top_logprobs=body.logprobs or 0)
        completion = await run_job(self.served, job, request)
        logprobs = None
        if body.logprobs is not None:
            logprobs = text_logprobs(self.served.chat, completion, ids_as_tokens=bool(body.return_tokens_as_token_ids))
        choice = self._choice(completion, body, logprobs)
        choice["text"] = self.served.text(completion, body)
        choice["prompt_token_ids"] = ids if body.return_token_ids else None
        return answer(self._envelope(job, "text_completion", choice, completion))

    async def generate(self, request: Request) -> Response:
        body = await read_body(request, _Generate)
        self._check(body.model, body.stream)
        ids = self.served.check_ids(body.token_ids)
        params = body.sampling_params
        check_max_tokens(params.max_tokens)
        self._check_prompt(len(ids))
        job = self.served.job(
            ids,
            params,
            request_id=body.request_id or request.headers.get("x-request-id") or new_id("generate"),
            max_tokens=16 if params.max_tokens is None else params.max_tokens,
            top_logprobs=params.logprobs or 0,
            cache_salt=body.cache_salt,
            priority=body.priority,
        )
        completion = await run_job(self.served, job, request)
        choice: dict[str, Any] = {
            "index": 0,
            "token_ids": completion.ids,
            "finish_reason": completion.finish_reason,
            "logprobs": _ranked(completion) if params.logprobs is not None else None,
            "weight_versions": [msgspec.to_builtins(span) for span in completion.weight_versions],
        }
        counts = usage(len(ids), completion)
        return answer({"request_id": job.request_id, "choices": [choice], "usage": counts})

    async def tokenize(self, request: Request) -> Response:
        body = await read_body(request, _Tokenize)
        self.served.check_model(body.model)
        if body.messages is None and body.prompt is None:
            raise Refused(400, "either messages or prompt is needed")
        ids = self.served.chat.encode(body.prompt or "") if body.messages is None else self._rendered(body)
        texts = [self.served.chat.token(i) for i in ids] if body.return_token_strs else None
        return answer({"count": len(ids), "max_model_len": self.served.context, "tokens": ids, "token_strs": texts})

    async def detokenize(self, request: Request) -> Response:
        body = await read_body(request, _Detokenize)
        self.served.check_model(body.model)
        ids = self.served.check_ids(body.tokens) if body.tokens else []
        return answer({"prompt": self.served.chat.decode(ids, skip_special=False)})

    async def abort_requests(self, request: Request) -> Response:
        self.served.engine.abort((await read_body(request, _Abort)).request_ids)
        return Response(status_code=200)

    async def pause(self, request: Request) -> Response:
        mode = request.query_params.get("mode", "abort")
        if mode not in ("abort", "wait", "keep"):
            raise Refused(400, f"mode must be abort, wait or keep, not {mode!r}", param="mode")
        chosen: Literal["abort", "wait", "keep"] = mode  # type: ignore[assignment]
        await asyncio.wrap_future(self.served.engine.pause(chosen))
        return answer({"status": "paused"})

    async def resume(self, request: Request) -> Response:
        self.served.engine.resume()
        return answer({"status": "resumed"})

    async def is_paused(self, request: Request) -> Response:
        return answer({"is_paused": self.served.engine.stats().paused})

    async def collective_rpc(self, request: Request) -> Response:
        body = await read_body(request, _Rpc)
        if body.method != "reload_weights":
            raise Refused(400, f"the embedded server knows no method {body.method!r}", param="method")
        folder = body.kwargs.get("weights_path")
        if not isinstance(folder, str):
            raise Refused(400, "reload_weights needs weights_path", param="kwargs")
        try:
            done = await asyncio.to_thread(self.served.engine.update_weights, Path(folder))
        except (OSError, ValueError, KeyError) as error:
            raise Refused(500, f"weights could not be loaded: {error}", "InternalServerError") from error
        await asyncio.wrap_future(done)
        return answer({"results": [None]})

    async def weight_info(self, request: Request) -> Response:
        return answer({"weight_version": self.served.engine.stats().weight_version})

    async def update_weight_version(self, request: Request) -> Response:
        body = await read_body(request, _NewVersion)
        await asyncio.wrap_future(self.served.engine.set_weight_version(body.new_version))
        return answer({"success": True, "new_version": body.new_version})

    def _prompt_and_limit(self, body: _Chat) -> tuple[list[int], int | None]:
        """The prompt's ids, and how many tokens are asked for at most; checked."""
        self._check(body.model, body.stream)
        prompt = self._rendered(body)
        asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        self._check_room(len(prompt), asked)
        return prompt, asked

    def _rendered(self, body: _Chat | _Tokenize) -> list[int]:
        """Raises Refused."""
        try:
            return self.served.chat.render(
                body.messages or [],
                body.tools,
                body.chat_template_kwargs or {},
                add_generation_prompt=body.add_generation_prompt,
            )
        except ChatError as error:
            raise Refused(400, str(error)) from error

    def _check(self, model: str | None, stream: bool | None) -> None:
        self.served.check_model(model)
        if stream:
            raise Refused(400, "the embedded server does not stream", param="stream")

    def _check_prompt(self, prompt: int) -> None:
        if prompt >= self.served.context:
            longest = f"the maximum model length of {self.served.context}"
            raise Refused(400, f"The decoder prompt (length {prompt}) is longer than {longest}.")

    def _check_room(self, prompt: int, asked: int | None) -> None:
        check_max_tokens(asked)
        if prompt + (asked or 1) > self.served.context:
            raise Refused(
                400,
                f"This model's maximum context length is {self.served.context} tokens. However, you requested "
                f"{asked or 0} output tokens and your prompt contains {prompt} input tokens.",
            )

    def _job(
        self,
        ids: list[int],
        body: _Common,
        request: Request,
        prefix: str,
        *,
        max_tokens: int | None,
        top_logprobs: int,
    ) -> Job:
        return self.served.job(
            ids,
            body,
            request_id=new_id(prefix, body.request_id or request.headers.get("x-request-id")),
            max_tokens=max_tokens,
            top_logprobs=top_logprobs,
            cache_salt=body.cache_salt,
            priority=body.priority,
            defaults=self.served.defaults,
        )

    def _choice(self, completion: Completion, body: _Chat | _Completion, logprobs: Any) -> dict[str, Any]:
        stopped_by = completion.ids[-1] if completion.finish_reason == "stop" else None
        own = stopped_by is not None and stopped_by in (body.stop_token_ids or ())
        return {
            "index": 0,
            "logprobs": logprobs,
            "finish_reason": completion.finish_reason,
            "stop_reason": stopped_by if own and stopped_by not in self.served.engine.model.config.eos_ids else None,
            "token_ids": completion.ids if body.return_token_ids else None,
        }

    def _envelope(self, job: Job, kind: str, choice: dict[str, Any], completion: Completion) -> dict[str, Any]:
        return {
            "id": job.request_id,
            "object": kind,
            "created": int(time.time()),
            "model": self.served.name,
            "choices": [choice],
            "usage": usage(len(job.prompt_ids), completion),
        }


def _ranked(completion: Completion) -> dict[str, Any]:
    rows = zip(completion.ids, completion.logprobs, completion.ranks, completion.top, strict=True)
    return {"content": [{"token_id": i, "logprob": p, "rank": r, "top_logprobs": _top(top)} for i, p, r, top in rows]}


def _top(likeliest: list[tuple[int, float]]) -> list[dict[str, Any]]:
    return [{"token_id": i, "logprob": p, "rank": rank} for rank, (i, p) in enumerate(likeliest, 1)]

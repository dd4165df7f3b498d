"""Dynamo's routes: one chat route for messages and for ids, with `nvext` for what OpenAI's API lacks.

vLLM's generate route is there too, as it is on a frontend with `DYN_VLLM_ENABLE_INFERENCE_V1_GENERATE=1` and a vLLM
worker.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from transports.embedded.chat import ChatError
from transports.embedded.jobs import Completion, Job
from transports.embedded.metrics import metrics_text
from transports.embedded.vllm_bodies import GenerateBody
from transports.embedded.wire import (
    GenerateRefused,
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

#: Fields of `nvext` that the real server takes; those that only steer its router change nothing here.
_NVEXT_FIELDS = frozenset(
    {"token_data", "extra_fields", "cache_salt", "agent_hints", "annotations", "greed_sampling", "use_raw_prompt"}
    | {"backend_instance_id", "max_thinking_tokens", "request_timestamp_ms", "session_control"}
    | {"prefill_worker_id", "decode_worker_id"}
)

#: Root fields that are accepted and change nothing here.
_IDLE_FIELDS = frozenset(
    {"metadata", "user", "service_tier", "store", "tool_choice", "parallel_tool_calls"}
    | {"stream_options", "reasoning_effort"}
)

_WRONG = "invalid_request_error"


class _Nvext(msgspec.Struct, kw_only=True):
    token_data: list[int] | None = None
    extra_fields: list[str] = []
    cache_salt: str | None = None
    agent_hints: dict[str, Any] | None = None


class _Common(SamplingBody, kw_only=True):
    model: str
    stream: bool | None = False
    cache_salt: str | None = None
    nvext: _Nvext | None = None


class _Chat(_Common, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True


class _Completion(_Common, kw_only=True):
    prompt: str | list[int]
    logprobs: int | None = None


class DynamoRoutes:
    """The handlers; each is a coroutine of one request."""

    def __init__(self, served: Served) -> None:
        self.served = served

    def routes(self) -> list[RouteSpec]:
        """Every route: method, path, handler."""
        return [
            ("GET", "/health", self.health),
            ("GET", "/live", self.health),
            ("GET", "/v1/models", self.models),
            ("GET", "/metrics", self.metrics),
            ("POST", "/v1/chat/completions", self.chat),
            ("POST", "/v1/completions", self.completions),
            ("POST", "/inference/v1/generate", self.generate),
        ]

    async def health(self, request: Request) -> Response:
        alive = self.served.engine.is_alive
        return answer({"status": "healthy" if alive else "unhealthy"}, 200 if alive else 503)

    async def models(self, request: Request) -> Response:
        card = {
            "id": self.served.name,
            "object": "model",
            "created": self.served.created,
            "owned_by": "nvidia",
            "context_window": self.served.context,
        }
        return answer({"object": "list", "data": [card]})

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse(metrics_text(self.served.engine.stats(), self.served.name, "dynamo"))

    async def chat(self, request: Request) -> Response:
        await _refuse_unknown(request, _Chat)
        body = await read_body(request, _Chat)
        self._check(body)
        asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        job = self._job(self._prompt(body), body, "chatcmpl", asked, body.top_logprobs or 0)
        completion = await run_job(self.served, job, request)
        # The real frontend gives null, not "", where the only token is the stop token.
        message = {"role": "assistant", "content": self.served.text(completion, body) or None}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": completion.finish_reason,
            "logprobs": chat_logprobs(self.served.chat, completion) if body.logprobs else None,
        }
        return answer(self._envelope(job, "chat.completion", choice, completion, body))

    async def completions(self, request: Request) -> Response:
        await _refuse_unknown(request, _Completion)
        body = await read_body(request, _Completion)
        self._check(body)
        given = body.nvext.token_data if body.nvext and body.nvext.token_data is not None else body.prompt
        ids = self.served.chat.encode(given) if isinstance(given, str) else given
        asked = 16 if body.max_tokens is None else body.max_tokens
        job = self._job(self.served.check_ids(ids), body, "cmpl", asked, body.logprobs or 0)
        completion = await run_job(self.served, job, request)
        choice = {
            "index": 0,
            "text": self.served.text(completion, body),
            "finish_reason": completion.finish_reason,
            "logprobs": text_logprobs(self.served.chat, completion) if body.logprobs is not None else None,
        }
        return answer(self._envelope(job, "text_completion", choice, completion, body))

    async def generate(self, request: Request) -> Response:
        """Answers neither usage nor versions."""
        body = await read_body(request, GenerateBody)
        if body.stream:
            text = "streaming (stream=true) is not implemented for /inference/v1/generate yet"
            raise GenerateRefused(501, text, "not_implemented")
        if body.content_parts:
            raise GenerateRefused(400, "content_parts: the embedded model reads text only", _WRONG)
        if body.model and body.model != self.served.name:
            raise GenerateRefused(404, f"Model not found: {body.model}", "not_found")
        job = self._generate_job(body, request)
        completion = await run_job(self.served, job, request)
        logprobs = None
        if body.sampling_params.logprobs is not None:
            logprobs = chat_logprobs(self.served.chat, completion, ids_as_tokens=True)
        choice = {
            "index": 0,
            "token_ids": completion.ids,
            "logprobs": logprobs,
            "finish_reason": completion.finish_reason,
            "routed_experts": None,
            "sampling_mask": None,
        }
        out = {"request_id": job.request_id, "choices": [choice]}
        return answer({**out, "prompt_logprobs": None, "kv_transfer_params": None})

    def _generate_job(self, body: GenerateBody, request: Request) -> Job:
        """Raises GenerateRefused, which says no more than the real frontend of what its worker refuses."""
        params = body.sampling_params
        if not body.token_ids:
            raise GenerateRefused(400, "token_ids must contain at least one token ID.", _WRONG)
        if params.max_tokens is not None and params.max_tokens < 1:
            raise GenerateRefused(400, "sampling_params.max_tokens must be greater than 0.", _WRONG)
        if not 0 <= (params.temperature or 0) <= 2:
            raise GenerateRefused(400, f"Temperature must be between 0 and 2, got {params.temperature:g}", _WRONG)
        try:
            if len(body.token_ids) >= self.served.context:
                raise Refused(400, "the prompt is too long")
            return self.served.job(
                self.served.check_ids(body.token_ids),
                params,
                request_id=body.request_id or request.headers.get("x-request-id") or new_id("generate"),
                max_tokens=params.max_tokens,
                top_logprobs=params.logprobs or 0,
                cache_salt=body.cache_salt,
                priority=body.priority,
            )
        except Refused as refused:
            raise GenerateRefused(400, "Invalid request", _WRONG) from refused

    def _check(self, body: _Common) -> None:
        self.served.check_model(body.model)
        if body.stream:
            raise Refused(400, "the embedded server does not stream", param="stream")

    def _prompt(self, body: _Chat) -> list[int]:
        if body.nvext and body.nvext.token_data is not None:
            return self.served.check_ids(body.nvext.token_data)
        try:
            return self.served.chat.render(
                body.messages,
                body.tools,
                body.chat_template_kwargs or {},
                add_generation_prompt=body.add_generation_prompt,
            )
        except ChatError as error:
            raise Refused(400, str(error)) from error

    def _job(self, ids: list[int], body: _Common, prefix: str, asked: int | None, top_logprobs: int) -> Job:
        check_max_tokens(asked)
        if len(ids) >= self.served.context:
            text = f"This model's maximum context length is {self.served.context} tokens, the prompt has {len(ids)}."
            raise Refused(400, text)
        nvext = body.nvext or _Nvext()
        priority = (nvext.agent_hints or {}).get("priority", 0)
        return self.served.job(
            ids,
            body,
            request_id=new_id(prefix),
            max_tokens=asked,
            top_logprobs=top_logprobs,
            cache_salt=body.cache_salt or nvext.cache_salt,
            priority=priority if isinstance(priority, int) else 0,
            defaults=self.served.defaults,
        )

    def _envelope(
        self, job: Job, kind: str, choice: dict[str, Any], completion: Completion, body: _Common
    ) -> dict[str, Any]:
        out = {
            "id": job.request_id,
            "object": kind,
            "created": int(time.time()),
            "model": self.served.name,
            "choices": [choice],
            "usage": usage(len(job.prompt_ids), completion),
        }
        if body.nvext and (extra := _extra_fields(job, completion, body.nvext.extra_fields)):
            out["nvext"] = extra
        return out


def _extra_fields(job: Job, completion: Completion, asked: list[str]) -> dict[str, Any]:
    """What `nvext.extra_fields` asks for, as a frontend with a vLLM worker answers it."""
    prompt = list(job.prompt_ids)
    have: dict[str, Any] = {
        "engine_data": {
            "prompt_token_ids": prompt,
            "completion_token_ids": completion.ids,
            "completion_logprobs": completion.logprobs,
            "kv_cache_hit": {"prompt_tokens": len(prompt), "reused_tokens": completion.cached_tokens},
            "finished": True,
        },
        "prompt_token_ids": prompt,
        "completion_token_ids": completion.ids,
        "worker_id": {"prefill_worker_id": 0, "decode_worker_id": 0},
        "timing": {},
    }
    return {name: have[name] for name in asked if name in have}


async def _refuse_unknown(request: Request, kind: type[msgspec.Struct]) -> None:
    """Raises Refused with the names of unknown fields, root and nvext, as the real frontend does."""
    try:
        raw = msgspec.json.decode(await request.body())
    except msgspec.DecodeError as error:
        raise Refused(400, f"JSON decode error: {error}") from error
    if not isinstance(raw, dict):
        raise Refused(400, "the body must be a JSON object")
    unknown = [name for name in raw if name not in kind.__struct_fields__ and name not in _IDLE_FIELDS]
    nvext = raw.get("nvext")
    if isinstance(nvext, dict):
        unknown += [f"nvext.{name}" for name in nvext if name not in _NVEXT_FIELDS]
    if unknown:
        raise Refused(400, f"Unsupported parameter(s): {', '.join(unknown)}")
    if raw.get("tools") and raw.get("tool_choice") not in (None, "auto", "none"):
        raise Refused(400, "tool_choice: the embedded server cannot force a call", param="tool_choice")

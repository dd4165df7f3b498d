"""vLLM's routes: chat, completions and generate by ids, tokenize, and the control of weights."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from rollout.chat.messages import Message
from rollout.dialects import sse
from rollout.dialects.chat import Chat
from rollout.dialects.memory import Memory
from rollout.dialects.types import Call
from transports.embedded.chat import ChatError
from transports.embedded.jobs import Completion, Job
from transports.embedded.metrics import metrics_text
from transports.embedded.programs import said, streamed
from transports.embedded.reply import read_reply
from transports.embedded.vllm_bodies import (
    AbortBody,
    ChatBody,
    CommonBody,
    CompletionBody,
    DetokenizeBody,
    GenerateBody,
    NewVersionBody,
    RpcBody,
    TokenizeBody,
)
from transports.embedded.wire import (
    NEUTRAL,
    Refused,
    RouteSpec,
    Served,
    answer,
    chat_logprobs,
    check_max_tokens,
    new_id,
    read_body,
    run_job,
    run_jobs,
    several,
    submitted,
    text_logprobs,
    usage,
)

#: The release whose behaviour these routes follow.
VERSION = "0.32.0+embedded"


CHAT = Chat(take=["n"])


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
        body = await read_body(request, ChatBody)
        prompt, asked = self._prompt_and_limit(body)
        top = body.top_logprobs or 0
        jobs = self._jobs(prompt, body, request, "chatcmpl", asked, top)
        if body.stream:
            return self._streamed_chat(jobs, body)
        completions = await run_jobs(self.served, jobs, request)
        choices = [self._chat_choice(at, completion, body) for at, completion in enumerate(completions)]
        out = self._envelope(jobs[0], "chat.completion", choices, completions)
        out["prompt_token_ids"] = prompt if body.return_token_ids else None
        return answer(out)

    def _chat_choice(self, at: int, completion: Completion, body: ChatBody) -> dict[str, Any]:
        logprobs = None
        if body.logprobs:
            logprobs = chat_logprobs(self.served.chat, completion, ids_as_tokens=bool(body.return_tokens_as_token_ids))
        choice = self._choice(at, completion, body, logprobs)
        message = self._message(completion, body)
        calls = [{**msgspec.to_builtins(call), "id": new_id("chatcmpl-tool")} for call in message.tool_calls]
        choice["message"] = {
            "role": "assistant",
            "content": message.content or (None if calls else ""),
            "refusal": None,
            "tool_calls": calls,
            "reasoning": message.reasoning_content,
        }
        if calls and completion.finish_reason == "stop":
            choice["finish_reason"] = "tool_calls"
        return choice

    def _message(self, completion: Completion, body: ChatBody) -> Message:
        """The answer's message: with calls where the model was free to call, else its text as it stands."""
        text = self.served.text(completion, body)
        return read_reply(text) if body.tools and body.tool_choice != "none" else Message("assistant", text)

    def _streamed_chat(self, jobs: list[Job], body: ChatBody) -> Response:
        if body.logprobs or body.return_token_ids:
            raise Refused(400, "logprobs and token ids are not streamed: ask without stream", param="stream")
        options = body.stream_options or {}
        call = Call(model=self.served.name, messages=[], include_usage=options.get("include_usage") is True)

        def events(completions: Sequence[Completion]) -> Iterator[bytes]:
            first, *others = (
                said(done, self._message(done, body), len(job.prompt_ids), uuid.uuid4().hex)
                for done, job in zip(completions, jobs, strict=True)
            )
            return CHAT.events(msgspec.structs.replace(first, others=others), call, Memory())

        return streamed(submitted(self.served, jobs), events, CHAT)

    async def render(self, request: Request) -> Response:
        """The request of ids that a request of messages comes to, with the server's own sampling defaults."""
        body = await read_body(request, ChatBody)
        prompt, asked = self._prompt_and_limit(body)
        room = self.served.context - len(prompt)
        sampling = self.served.sampling(body, self.served.defaults)
        params = {name: value for name, value in sampling.items() if value != NEUTRAL[name]}
        params["max_tokens"] = room if asked is None else min(asked, room)
        request_id = new_id("chatcmpl", body.request_id)
        name = self.served.name
        return answer({"request_id": request_id, "token_ids": prompt, "sampling_params": params, "model": name})

    async def completions(self, request: Request) -> Response:
        body = await read_body(request, CompletionBody)
        self.served.check_model(body.model)
        ids = self.served.chat.encode(body.prompt) if isinstance(body.prompt, str) else body.prompt
        ids = self.served.check_ids(ids)
        self._check_room(len(ids), body.max_tokens)
        top = body.logprobs or 0
        jobs = self._jobs(ids, body, request, "cmpl", body.max_tokens, top)

        def made(completions: Sequence[Completion]) -> dict[str, Any]:
            choices = [self._text_choice(at, done, body, ids) for at, done in enumerate(completions)]
            return self._envelope(jobs[0], "text_completion", choices, completions)

        if not body.stream:
            return answer(made(await run_jobs(self.served, jobs, request)))
        usage_too = (body.stream_options or {}).get("include_usage") is True
        return streamed(submitted(self.served, jobs), lambda done: _text_events(made(done), usage_too), CHAT)

    def _text_choice(self, at: int, completion: Completion, body: CompletionBody, ids: list[int]) -> dict[str, Any]:
        logprobs = None
        if body.logprobs is not None:
            logprobs = text_logprobs(self.served.chat, completion, ids_as_tokens=bool(body.return_tokens_as_token_ids))
        choice = self._choice(at, completion, body, logprobs)
        choice["text"] = self.served.text(completion, body)
        choice["prompt_token_ids"] = ids if body.return_token_ids else None
        return choice

    async def generate(self, request: Request) -> Response:
        body = await read_body(request, GenerateBody)
        self.served.check_model(body.model)
        if body.stream:
            raise Refused(400, "ids are not streamed: ask without stream", param="stream")
        if body.content_parts:
            raise Refused(400, "the embedded model reads text only", param="content_parts")
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
        body = await read_body(request, TokenizeBody)
        self.served.check_model(body.model)
        if body.messages is None and body.prompt is None:
            raise Refused(400, "either messages or prompt is needed")
        ids = self.served.chat.encode(body.prompt or "") if body.messages is None else self._rendered(body)
        texts = [self.served.chat.token(i) for i in ids] if body.return_token_strs else None
        return answer({"count": len(ids), "max_model_len": self.served.context, "tokens": ids, "token_strs": texts})

    async def detokenize(self, request: Request) -> Response:
        body = await read_body(request, DetokenizeBody)
        self.served.check_model(body.model)
        ids = self.served.check_ids(body.tokens) if body.tokens else []
        return answer({"prompt": self.served.chat.decode(ids, skip_special=False)})

    async def abort_requests(self, request: Request) -> Response:
        self.served.engine.abort((await read_body(request, AbortBody)).request_ids)
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
        body = await read_body(request, RpcBody)
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
        body = await read_body(request, NewVersionBody)
        await asyncio.wrap_future(self.served.engine.set_weight_version(body.new_version))
        return answer({"success": True, "new_version": body.new_version})

    def _prompt_and_limit(self, body: ChatBody) -> tuple[list[int], int | None]:
        """The prompt's ids, and how many tokens are asked for at most; checked."""
        self.served.check_model(body.model)
        if body.tools and body.tool_choice not in (None, "auto", "none"):
            raise Refused(400, "tool_choice: the embedded server cannot force a call", param="tool_choice")
        if body.tools and body.tool_choice != "none" and body.parallel_tool_calls is False:
            raise Refused(400, "the embedded server cannot hold the model to one call", param="parallel_tool_calls")
        prompt = self._rendered(body)
        asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        self._check_room(len(prompt), asked)
        return prompt, asked

    def _rendered(self, body: ChatBody | TokenizeBody) -> list[int]:
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

    def _jobs(
        self,
        ids: list[int],
        body: CommonBody,
        request: Request,
        prefix: str,
        max_tokens: int | None,
        top_logprobs: int,
    ) -> list[Job]:
        """A job for each of the answers that are asked for; those behind the first have their number in their id."""
        identifier = new_id(prefix, body.request_id or request.headers.get("x-request-id"))
        return [
            self.served.job(
                ids,
                one,
                request_id=f"{identifier}-{at}" if at else identifier,
                max_tokens=max_tokens,
                top_logprobs=top_logprobs,
                cache_salt=body.cache_salt,
                priority=body.priority,
                defaults=self.served.defaults,
            )
            for at, one in enumerate(several(body))
        ]

    def _choice(
        self, at: int, completion: Completion, body: ChatBody | CompletionBody, logprobs: Any
    ) -> dict[str, Any]:
        stopped_by = completion.ids[-1] if completion.finish_reason == "stop" else None
        own = stopped_by is not None and stopped_by in (body.stop_token_ids or ())
        return {
            "index": at,
            "logprobs": logprobs,
            "finish_reason": completion.finish_reason,
            "stop_reason": stopped_by if own and stopped_by not in self.served.engine.model.config.eos_ids else None,
            "token_ids": completion.ids if body.return_token_ids else None,
        }

    def _envelope(
        self, job: Job, kind: str, choices: list[dict[str, Any]], completions: Sequence[Completion]
    ) -> dict[str, Any]:
        return {
            "id": job.request_id,
            "object": kind,
            "created": int(time.time()),
            "model": self.served.name,
            "choices": choices,
            "usage": usage(len(job.prompt_ids), *completions),
        }


def _text_events(made: dict[str, Any], usage_too: bool) -> Iterator[bytes]:
    """A text completion as a stream: a frame a choice."""
    counts = made.pop("usage")
    for choice in made.pop("choices"):
        yield sse.frame({**made, "choices": [choice], **({"usage": None} if usage_too else {})})
    if usage_too:
        yield sse.frame({**made, "choices": [], "usage": counts})
    yield sse.DONE


def _ranked(completion: Completion) -> dict[str, Any]:
    rows = zip(completion.ids, completion.logprobs, completion.ranks, completion.top, strict=True)
    return {"content": [{"token_id": i, "logprob": p, "rank": r, "top_logprobs": _top(top)} for i, p, r, top in rows]}


def _top(likeliest: list[tuple[int, float]]) -> list[dict[str, Any]]:
    return [{"token_id": i, "logprob": p, "rank": rank} for rank, (i, p) in enumerate(likeliest, 1)]

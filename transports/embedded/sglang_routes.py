"""SGLang's routes: ids by `/generate`, messages by chat completions, and the control of requests, pauses and weights.

Where the real server dies (an id outside the vocabulary) this one refuses. It keeps what runs in a pause and what was
computed of it; it does not retract.
"""

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
from transports.embedded.sglang_bodies import (
    AbortBody,
    ChatBody,
    DetokenizeBody,
    FromDiskBody,
    GenerateBody,
    NativeSamplingBody,
    NewVersionBody,
    PauseBody,
    TokenizeBody,
    tool_record,
)
from transports.embedded.wire import (
    Refused,
    RouteSpec,
    SamplingBody,
    Served,
    answer,
    chat_logprobs,
    new_id,
    read_body,
    run_job,
    usage,
)

#: The release whose behaviour these routes follow.
VERSION = "0.5.23+embedded"

#: What each pause is to the engine.
_PAUSES: dict[str, Literal["keep", "abort"]] = {"in_place": "keep", "abort": "abort"}


class SglangRoutes:
    """The handlers; each is a coroutine of one request."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._rids = set[str]()
        """Of requests that run: a name is refused while another has it."""
        self._name = served.name
        """What the model is called: new weights give it the name of their folder."""

    def routes(self) -> list[RouteSpec]:
        """Every route: method, path, handler."""
        return [
            ("GET", "/health", self.health),
            ("GET", "/ready", self.ready),
            ("GET", "/v1/models", self.models),
            ("GET", "/model_info", self.model_info),
            ("GET", "/server_info", self.server_info),
            ("GET", "/v1/loads", self.loads),
            ("GET", "/metrics", self.metrics),
            ("POST", "/generate", self.generate),
            ("POST", "/v1/chat/completions", self.chat),
            ("POST", "/tokenize", self.tokenize),
            ("POST", "/detokenize", self.detokenize),
            ("POST", "/abort_request", self.abort_request),
            ("POST", "/pause_generation", self.pause_generation),
            ("POST", "/continue_generation", self.continue_generation),
            ("POST", "/update_weights_from_disk", self.update_weights_from_disk),
            ("POST", "/update_weight_version", self.update_weight_version),
        ]

    async def health(self, request: Request) -> Response:
        return Response(status_code=200 if self.served.engine.is_alive else 503)

    async def ready(self, request: Request) -> Response:
        engine = self.served.engine
        return Response(status_code=200 if engine.is_alive and not engine.stats().paused else 503)

    async def models(self, request: Request) -> Response:
        name, context = self._name, self.served.context
        card = {"id": name, "object": "model", "created": self.served.created, "owned_by": "sglang", "root": name}
        return answer({"object": "list", "data": [{**card, "parent": None, "max_model_len": context}]})

    async def model_info(self, request: Request) -> Response:
        root, version = self.served.root, self.served.engine.stats().weight_version
        told = {"model_path": root, "tokenizer_path": root, "is_generation": True, "weight_version": version}
        return answer({**told, "served_model_name": self._name, "preferred_sampling_params": None})

    async def server_info(self, request: Request) -> Response:
        told = {
            "version": VERSION,
            "served_model_name": self.served.name,
            "sampling_defaults": "model",
            "context_length": self.served.context,
        }
        order = {"enable_priority_scheduling": True, "schedule_low_priority_values_first": False}
        return answer({**told, **order, "internal_states": [{}]})

    async def loads(self, request: Request) -> Response:
        stats = self.served.engine.stats()
        load = {"dp_rank": 0, "num_running_reqs": stats.running, "num_waiting_reqs": stats.waiting}
        return answer({"version": VERSION, "loads": [{**load, "token_usage": stats.cache_usage}]})

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse(metrics_text(self.served.engine.stats(), self.served.name, "sglang"))

    async def generate(self, request: Request) -> Response:
        body = await read_body(request, GenerateBody)
        _check_stream(body.stream)
        if body.image_data:
            raise Refused(400, "the embedded model reads text only", param="image_data")
        params = body.sampling_params
        self._check_bias(params)
        ids = self.served.check_ids(body.input_ids)
        self._check_room(len(ids), params.max_new_tokens)
        job = self._job(ids, _as_vllm(params), body, params.max_new_tokens, body.top_logprobs_num, {})
        completion = await self._run(job, request)
        out = {
            "text": self.served.text(completion, _as_vllm(params)),
            "output_ids": completion.ids,
            "meta_info": _meta(job, completion, logprobs=body.return_logprob),
        }
        return answer({**out, "prompt_token_ids": ids} if body.return_prompt_token_ids else out)

    async def chat(self, request: Request) -> Response:
        body = await read_body(request, ChatBody)
        _check_stream(body.stream)
        asked = body.max_completion_tokens or body.max_tokens
        # With "none" the tools are left out of the prompt.
        tools = None if body.tool_choice == "none" else body.tools
        ids = self._rendered(body.messages, tools, body.chat_template_kwargs)
        self._check_room(len(ids), asked)
        job = self._job(ids, body, body, asked, body.top_logprobs or 0, self.served.defaults)
        completion = await self._run(job, request)
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": self.served.text(completion, body), "tool_calls": None},
            "logprobs": chat_logprobs(self.served.chat, completion) if body.logprobs else None,
            "finish_reason": completion.finish_reason,
            "prompt_token_ids": ids if body.return_token_ids or body.return_prompt_token_ids else None,
            "response_token_ids": completion.ids if body.return_token_ids else None,
            "meta_info": _meta(job, completion, logprobs=body.logprobs) if body.return_meta_info else None,
        }
        # Without --enable-cache-report the details are left out.
        counts = {**usage(len(ids), completion), "prompt_tokens_details": None}
        out = {"id": job.request_id, "object": "chat.completion", "created": int(time.time())}
        return answer({**out, "model": self.served.name, "choices": [choice], "usage": counts})

    async def tokenize(self, request: Request) -> Response:
        body = await read_body(request, TokenizeBody)
        if body.messages is None and body.prompt is None:
            raise Refused(400, "Exactly one of prompt or messages must be provided.")
        if body.messages is None:
            ids = self.served.chat.encode(body.prompt or "")
        else:
            ask = body.add_generation_prompt is not False
            ids = self._rendered(body.messages, body.tools, body.chat_template_kwargs, add_generation_prompt=ask)
        return answer({"tokens": ids, "count": len(ids), "max_model_len": self.served.context})

    async def detokenize(self, request: Request) -> Response:
        body = await read_body(request, DetokenizeBody)
        ids = self.served.check_ids(body.tokens) if body.tokens else []
        return answer({"text": self.served.chat.decode(ids, skip_special=body.skip_special_tokens)})

    async def abort_request(self, request: Request) -> Response:
        body = await read_body(request, AbortBody)
        self.served.engine.abort(list(self._rids) if body.abort_all else [body.rid])
        return Response(status_code=200)

    async def pause_generation(self, request: Request) -> Response:
        mode = (await read_body(request, PauseBody)).mode
        if mode not in _PAUSES:
            raise Refused(400, f"the embedded server does not {mode} what runs", param="mode")
        await asyncio.wrap_future(self.served.engine.pause(_PAUSES[mode]))
        return answer({"message": "Generation paused successfully.", "status": "ok"})

    async def continue_generation(self, request: Request) -> Response:
        self.served.engine.resume()
        return answer({"message": "Generation continued successfully.", "status": "ok"})

    async def update_weights_from_disk(self, request: Request) -> Response:
        body = await read_body(request, FromDiskBody)
        try:
            done = await asyncio.to_thread(self.served.engine.update_weights, Path(body.model_path))
        except (OSError, ValueError, KeyError) as error:
            raise Refused(400, f"Failed to update weights: {error}") from error
        await asyncio.wrap_future(done)
        self._name = body.model_path
        if body.weight_version is not None:
            await asyncio.wrap_future(self.served.engine.set_weight_version(body.weight_version))
        return answer({"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0})

    async def update_weight_version(self, request: Request) -> Response:
        body = await read_body(request, NewVersionBody)
        if body.abort_all_requests:
            self.served.engine.abort(list(self._rids))
        await asyncio.wrap_future(self.served.engine.set_weight_version(body.new_version))
        return answer({"success": True, "new_version": body.new_version})

    async def _run(self, job: Job, request: Request) -> Completion:
        if job.request_id in self._rids:
            raise Refused(400, f"Duplicate request ID detected: {job.request_id}")
        self._rids.add(job.request_id)
        try:
            return await run_job(self.served, job, request)
        finally:
            self._rids.discard(job.request_id)

    def _job(
        self,
        ids: list[int],
        sampling: SamplingBody,
        routing: GenerateBody | ChatBody,
        asked: int | None,
        top_logprobs: int,
        defaults: Any,
    ) -> Job:
        job = self.served.job(
            ids,
            sampling,
            request_id=routing.rid or new_id("sglang"),
            max_tokens=asked,
            top_logprobs=top_logprobs,
            cache_salt=routing.cache_salt,
            priority=-(routing.priority or 0),  # the highest number is served first
            defaults=defaults,
        )
        top_k = sampling.top_k if sampling.top_k is not None else defaults.get("top_k", -1)
        if top_k == 0:
            raise Refused(400, "top_k must be -1 (disable) or at least 1, got 0.")
        return job

    def _rendered(
        self, messages: list[dict[str, Any]], tools: Any, template_args: Any, *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Raises Refused. Tools are shown as SGLang's own records of them, with every field that they lack."""
        shown = [tool_record(tool) for tool in tools or ()]
        try:
            return self.served.chat.render(
                messages, shown or None, template_args or {}, add_generation_prompt=add_generation_prompt
            )
        except ChatError as error:
            raise Refused(400, str(error)) from error

    def _check_room(self, prompt: int, asked: int | None) -> None:
        """A completion that does not fit is refused, too, and not cut."""
        context = self.served.context
        if prompt >= context:
            why = f"is longer than the model's context length ({context} tokens)"
            raise Refused(400, f"The input ({prompt} tokens) {why}.")
        if prompt + (asked or 0) > context:
            raise Refused(
                400,
                f"Requested token count exceeds the model's maximum context length of {context} tokens. You requested "
                f"a total of {prompt + (asked or 0)} tokens: {prompt} tokens from the input messages and "
                f"{asked} tokens for the completion.",
            )

    def _check_bias(self, params: NativeSamplingBody) -> None:
        size = self.served.engine.model.config.vocab_size
        for one in params.logit_bias or ():
            if not one.isdecimal() or int(one) >= size:
                raise Refused(400, f"logit_bias must has keys in [0, {size - 1}], got {one}.")


def _as_vllm(params: NativeSamplingBody) -> SamplingBody:
    """The same by the names that every dialect's engine takes."""
    return SamplingBody(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=params.sampling_seed,
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        min_tokens=params.min_new_tokens or 0,
        ignore_eos=bool(params.ignore_eos),
        skip_special_tokens=params.skip_special_tokens is not False,
        n=params.n,
    )


def _check_stream(stream: bool) -> None:
    if stream:
        raise Refused(400, "the embedded server does not stream", param="stream")


def _meta(job: Job, completion: Completion, *, logprobs: bool) -> dict[str, Any]:
    """`meta_info`."""
    finish: dict[str, Any] = {"type": completion.finish_reason}
    if completion.finish_reason == "stop":
        finish["matched"] = completion.ids[-1]
    elif completion.finish_reason == "length":
        finish["length"] = len(completion.ids)
    else:
        finish["message"] = "Aborted"
    spans = [msgspec.to_builtins(span) for span in completion.weight_versions]
    meta = {
        "id": job.request_id,
        "finish_reason": finish,
        "prompt_tokens": len(job.prompt_ids),
        "completion_tokens": len(completion.ids),
        "cached_tokens": completion.cached_tokens,
        "weight_versions": spans,
    }
    if logprobs:
        pairs = zip(completion.logprobs, completion.ids, strict=True)
        meta["output_token_logprobs"] = [[logprob, token, None] for logprob, token in pairs]
    return meta

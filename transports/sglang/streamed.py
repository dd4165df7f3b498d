"""SGLang's `/generate` as Dynamo's frontend serves it: streamed alone, an event for each token. Pure.

A frontend with `DYN_SGLANG_ENABLE_GENERATE=1` has it, for workers of SGLang. It does not read the model's own settings,
so a request says how to sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from rollout.errors import ConnectionFailed, MalformedReply, RequestRefused, ServerBusy
from rollout.request import Reply, Request
from transports.http.answers import UNREADABLE
from transports.http.client import Answer
from transports.openai import TokenId, finish_reason, paired
from transports.sglang.wire import GENERATE, Finish, TokenLogprob, Ways, generate_body

_DATA = b"data:"
_END = b"[DONE]"


class _Meta(msgspec.Struct):
    finish_reason: Finish | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    output_token_logprobs: list[TokenLogprob] = []


class _Fault(msgspec.Struct):
    message: str = ""


class _Event(msgspec.Struct):
    output_ids: list[TokenId] = []
    meta_info: _Meta = msgspec.field(default_factory=_Meta)
    error: _Fault | None = None


_EVENT = msgspec.json.Decoder(_Event)


def stream_body(request: Request, context: int | None) -> dict[str, Any]:
    """The body of a token-in request. Raises RequestRefused where nothing says how long a completion may be.

    It has no name: a frontend ends what it hears no more of by itself. No routed experts and masks are asked for: how
    they would come in events has not been seen.
    """
    request = msgspec.structs.replace(request, routed_experts_from=None, sampling_mask=False)
    body = {**generate_body(request, "", Ways(context=context)), "stream": True}
    del body["rid"]
    if body["sampling_params"]["max_new_tokens"] is None:
        raise RequestRefused("Dynamo's /generate would sample without end: say how long it may, by --max-tokens")
    return body


def read_stream(answer: Answer) -> Reply:
    """Reads the events of an answer. Raises MalformedReply; ServerBusy and ConnectionFailed where its worker went."""
    ids: list[int] = []
    entries: list[TokenLogprob] = []
    last = _Meta()
    for event in _events(answer):
        if event.error is not None:
            raise ServerBusy(f"{GENERATE}: {event.error.message}", status=answer.status)
        ids += event.output_ids
        entries += event.meta_info.output_token_logprobs
        last = event.meta_info
    if last.finish_reason is None:
        raise ConnectionFailed(f"{GENERATE}: the answer ends after {len(ids)} tokens without a reason")
    if last.completion_tokens not in (None, len(ids)):
        raise MalformedReply(f"{GENERATE}: {last.completion_tokens} tokens were sampled, and {len(ids)} came")
    logprobs = paired(ids, [entry.logprob for entry in entries])
    if [entry.token_id for entry in entries] != ids:
        raise MalformedReply(f"{GENERATE}: logprobs are of other tokens than were sampled")
    return Reply(
        completion_ids=ids,
        logprobs=logprobs,
        finish_reason=finish_reason(last.finish_reason.type),
        prompt_tokens=last.prompt_tokens,
        cached_tokens=last.cached_tokens,
        request_s=answer.elapsed_s,
    )


def _events(answer: Answer) -> Iterator[_Event]:
    for line in answer.body.splitlines():
        if not line.startswith(_DATA):
            continue
        data = line[len(_DATA) :].strip()
        if data == _END:
            return
        try:
            yield _EVENT.decode(data)
        except UNREADABLE as error:
            start = data[:200].decode("utf-8", "replace")
            raise MalformedReply(
                f"{GENERATE}: an event is no answer: {error}: {start}", status=answer.status
            ) from error

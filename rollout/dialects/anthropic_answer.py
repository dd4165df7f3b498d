"""Answers of Anthropic Messages.

The model's name is the one that was asked for: Claude Code sends thinking back, with its signature, only then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from rollout.dialects import sse
from rollout.dialects.answers import Answer, arguments_object
from rollout.dialects.memory import Memory
from rollout.dialects.types import CONTEXT_LENGTH, Call, DialectError, Said

#: Anthropic's type of error by HTTP status.
_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def body(said: Said, call: Call, memory: Memory) -> bytes:
    answer = _remembered(said, call, memory)
    head = _head(said, call)
    content = [{**start, **whole} for start, whole, _ in _blocks(answer)]
    ended = {"stop_reason": _stop_reason(said), "stop_sequence": said.stop_sequence}
    return msgspec.json.encode({**head, "content": content, **ended, "usage": _usage(said, said.completion_tokens)})


def events(said: Said, call: Call, memory: Memory) -> Iterator[bytes]:
    return _events(said, call, _remembered(said, call, memory))


def _events(said: Said, call: Call, answer: Answer) -> Iterator[bytes]:
    nothing: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(said, 0)}
    yield _event("message_start", message={**_head(said, call), **nothing})
    for at, (start, _, deltas) in enumerate(_blocks(answer)):
        yield _event("content_block_start", index=at, content_block=start)
        for delta in deltas:
            yield _event("content_block_delta", index=at, delta=delta)
        yield _event("content_block_stop", index=at)
    ended = {"stop_reason": _stop_reason(said), "stop_sequence": said.stop_sequence}
    yield _event("message_delta", delta=ended, usage=_usage(said, said.completion_tokens))
    yield _event("message_stop")


def error_fields(error: DialectError) -> dict[str, Any]:
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    message = error.message
    if error.code == CONTEXT_LENGTH and "prompt is too long" not in message:
        message = f"prompt is too long: {message}"  # what Claude Code knows, and compacts its conversation for
    return {"type": "error", "error": {"type": kind, "message": message}}


def error_event(error: DialectError) -> bytes:
    return sse.frame(error_fields(error), "error")


def _remembered(said: Said, call: Call, memory: Memory) -> Answer:
    return memory.remember(said, call, "toolu", (f"msg_{said.id}",))


#: (the block as it starts, what it has in the end, the deltas between)
_Block = tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]


def _blocks(answer: Answer) -> Iterator[_Block]:
    message = answer.shown
    if reasoning := message.reasoning_content:
        deltas: list[dict[str, Any]] = [{"type": "thinking_delta", "thinking": part} for part in sse.pieces(reasoning)]
        deltas.append({"type": "signature_delta", "signature": answer.seal})
        start = {"type": "thinking", "thinking": "", "signature": ""}
        yield start, {"thinking": reasoning, "signature": answer.seal}, deltas
    if message.text.strip():  # a block of blanks alone is one that Anthropic's own API refuses
        deltas = [{"type": "text_delta", "text": part} for part in sse.pieces(message.text)]
        yield {"type": "text", "text": ""}, {"text": message.text}, deltas
    for call, wire in zip(message.tool_calls, answer.call_ids, strict=True):
        text = json.dumps(arguments_object(call.function.arguments), ensure_ascii=False)  # integers of any size
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in sse.pieces(text)]
        yield (
            {"type": "tool_use", "id": wire, "name": call.name, "input": {}},
            {"input": msgspec.Raw(text.encode())},
            deltas,
        )


def _event(kind: str, **fields: Any) -> bytes:
    return sse.frame({"type": kind, **fields}, kind)


def _head(said: Said, call: Call) -> dict[str, Any]:
    return {"id": f"msg_{said.id}", "type": "message", "role": "assistant", "model": call.model}


def _stop_reason(said: Said) -> str:
    if said.finish_reason == "length":
        return "max_tokens"
    if said.message.tool_calls:
        return "tool_use"
    return "stop_sequence" if said.stop_sequence is not None else "end_turn"


def _usage(said: Said, completion: int) -> dict[str, int]:
    """Token counts: Anthropic counts what was read from the cache beside the input."""
    cached = min(said.cached_tokens or 0, said.prompt_tokens)
    return {
        "input_tokens": said.prompt_tokens - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": completion,
    }

"""Answers of OpenAI Responses: reasoning, a message and calls, each an item with an id by which it is known again."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec

from rollout.chat.messages import Function, Message
from rollout.dialects import sse
from rollout.dialects.answers import Answer
from rollout.dialects.memory import Memory
from rollout.dialects.openai_errors import error_fields
from rollout.dialects.responses_tools import custom_arguments, custom_input
from rollout.dialects.types import Call, DialectError, Said


def body(said: Said, call: Call, memory: Memory) -> bytes:
    output = [item for item, _ in _items(said, call, _remembered(said, call, memory))]
    return msgspec.json.encode(_response(said, call, output))


def events(said: Said, call: Call, memory: Memory) -> Iterator[bytes]:
    return _numbered(_events(said, call, _remembered(said, call, memory)))


def error_event(error: DialectError) -> bytes:
    """A response that begins and fails: what has not begun is an event that OpenAI's SDK does not expect."""
    failed = {"code": error.code or error_fields(error)["type"], "message": error.message}
    nothing = Said(message=Message("assistant"), id=uuid.uuid4().hex[:24], created=int(time.time()))
    response = {**_response(nothing, Call(model="", messages=[]), []), "usage": None}
    begun = {**response, "status": "in_progress"}
    events: list[_Event] = [
        ("response.created", {"response": begun}),
        ("response.failed", {"response": {**response, "status": "failed", "error": failed}}),
    ]
    return b"".join(_numbered(iter(events)))


def _numbered(found: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[bytes]:
    for number, (kind, fields) in enumerate(found):
        yield sse.frame({"type": kind, "sequence_number": number, **fields}, kind)


#: An event's type and its fields.
_Event = tuple[str, dict[str, Any]]


def _events(said: Said, call: Call, answer: Answer) -> Iterator[_Event]:
    started = {**_response(said, call, []), "status": "in_progress", "usage": None, "incomplete_details": None}
    yield "response.created", {"response": started}
    yield "response.in_progress", {"response": started}
    output = _items(said, call, answer)
    for at, (item, inside) in enumerate(output):
        empty = {name: nothing for name, nothing in _GROWS.items() if name in item}
        yield "response.output_item.added", {"output_index": at, "item": {**item, "status": "in_progress", **empty}}
        for kind, fields in inside:
            yield f"response.{kind}", {"item_id": item["id"], "output_index": at, **fields}
        yield "response.output_item.done", {"output_index": at, "item": item}
    ended = "incomplete" if said.finish_reason == "length" else "completed"
    yield f"response.{ended}", {"response": _response(said, call, [item for item, _ in output])}


#: What an item has when it begins, of that which grows.
_GROWS: dict[str, Any] = {"content": [], "summary": [], "arguments": "", "input": ""}


def _items(said: Said, call: Call, answer: Answer) -> list[tuple[dict[str, Any], list[_Event]]]:
    """Each item as it is in the end, with the events in which it grows."""
    message, found = answer.shown, list[tuple[dict[str, Any], list[_Event]]]()
    if message.reasoning_content:
        found.append(_reasoning(said, answer, message.reasoning_content))
    if message.text or not message.tool_calls:
        found.append(_text(said, message.text))
    found += [_call(said, call, answer, at) for at in range(len(message.tool_calls))]
    if said.finish_reason == "length":
        found[-1][0]["status"] = "incomplete"
    return found


def _reasoning(said: Said, answer: Answer, text: str) -> tuple[dict[str, Any], list[_Event]]:
    part = {"type": "summary_text", "text": text}
    item: dict[str, Any] = {"id": f"rs_{said.id}", "type": "reasoning", "summary": [part], "status": "completed"}
    at = {"summary_index": 0}
    return {**item, "encrypted_content": answer.seal}, [
        ("reasoning_summary_part.added", {**at, "part": {"type": "summary_text", "text": ""}}),
        *(("reasoning_summary_text.delta", {**at, "delta": piece}) for piece in sse.pieces(text)),
        ("reasoning_summary_text.done", {**at, "text": text}),
        ("reasoning_summary_part.done", {**at, "part": part}),
    ]


def _text(said: Said, text: str) -> tuple[dict[str, Any], list[_Event]]:
    part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    at: dict[str, Any] = {"content_index": 0}
    item = {"id": f"msg_{said.id}", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    return item, [
        ("content_part.added", {**at, "part": {**part, "text": ""}}),
        *(("output_text.delta", {**at, "delta": piece, "logprobs": []}) for piece in sse.pieces(text)),
        ("output_text.done", {**at, "text": text, "logprobs": []}),
        ("content_part.done", {**at, "part": part}),
    ]


def _call(said: Said, call: Call, answer: Answer, at: int) -> tuple[dict[str, Any], list[_Event]]:
    made = answer.message.tool_calls[at]
    kind, name, namespace = call.asked.get("names", {}).get(made.name, ("function", made.name, None))
    item: dict[str, Any] = {"call_id": answer.call_ids[at], "name": name, "status": "completed"}
    if namespace:
        item["namespace"] = namespace
    if kind == "custom":
        text = custom_input(made.function.arguments)
        item |= {"id": f"ctc_{said.id}_{at}", "type": "custom_tool_call", "input": text}
        grows, name = "custom_tool_call_input", "input"
    else:
        text = made.function.arguments or "{}"
        item |= {"id": f"fc_{said.id}_{at}", "type": "function_call", "arguments": text}
        grows, name = "function_call_arguments", "arguments"
    deltas = [(f"{grows}.delta", {"delta": piece}) for piece in sse.pieces(text)]
    return item, [*deltas, (f"{grows}.done", {name: text, "name": item["name"]})]


def _remembered(said: Said, call: Call, memory: Memory) -> Answer:
    count = range(len(said.message.tool_calls))
    further = [f"{kind}_{said.id}" for kind in ("resp", "msg", "rs")]
    further += [f"{kind}_{said.id}_{at}" for at in count for kind in ("fc", "ctc")]
    customs = {name for name, (kind, _, _) in call.asked.get("names", {}).items() if kind == "custom"}
    shown = said.shown
    if any(made.name in customs for made in said.message.tool_calls):
        calls = tuple(
            msgspec.structs.replace(
                made, function=Function(made.name, custom_arguments(custom_input(made.function.arguments)))
            )
            if made.name in customs
            else made
            for made in said.message.tool_calls
        )
        shown = msgspec.structs.replace(shown or said.message, tool_calls=calls)
    return memory.remember(said, call, "call", further, shown)


def _response(said: Said, call: Call, output: list[dict[str, Any]]) -> dict[str, Any]:
    """The response; what the request offered and told is not repeated in it, since it may be large."""
    cut = said.finish_reason == "length"
    return {
        "id": f"resp_{said.id}",
        "object": "response",
        "created_at": said.created,
        "status": "incomplete" if cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": None,
        "metadata": {},
        "model": call.model,
        "output": output,
        "parallel_tool_calls": call.asked.get("parallel_tool_calls", True),
        "temperature": call.sampling.get("temperature"),
        "top_p": call.sampling.get("top_p"),
        "tool_choice": "auto",
        "tools": [],
        "max_output_tokens": call.max_tokens,
        "previous_response_id": call.asked.get("previous"),
        "usage": {
            "input_tokens": said.prompt_tokens,
            "input_tokens_details": {"cached_tokens": said.cached_tokens or 0},
            "output_tokens": said.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": said.prompt_tokens + said.completion_tokens,
        },
    }

"""OpenAI chat completions.

{"model": ..., "messages": [...], "tools": [...], "stream": true}
-> chunks of one choice: the role, reasoning, text, each call, the finish reason, the usage; then [DONE]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from rollout.chat.messages import Message
from rollout.dialects import sse
from rollout.dialects.answers import Answer
from rollout.dialects.fields import Fields, decoded, unsupported
from rollout.dialects.memory import Known, Memory
from rollout.dialects.openai_errors import OpenAIErrors
from rollout.dialects.sampling import COMMON, NO_LOGPROBS, cap, given, tool_choice
from rollout.dialects.tools import function_tools
from rollout.dialects.types import Call, DialectError, Said
from rollout.errors import MessageError

_KIND = b"chat"

#: Fields that say nothing to the model.
_IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity"),
        *("prompt_cache_retention", "prompt_cache_options", "prediction", "request_id", "priority", "cache_salt"),
    }
)

#: Fields that ask for what is not answered, and why.
_REFUSED: Mapping[str, str] = {
    "functions": "use tools",
    "function_call": "use tool_choice",
    "audio": "answers are text",
    "web_search_options": "there is no web search here",
    **dict.fromkeys(("logprobs", "top_logprobs", "prompt_logprobs"), NO_LOGPROBS),
    **dict.fromkeys(("return_token_ids", "return_prompt_token_ids"), "the rollout's record has the ids"),
    "echo": "the prompt is not answered",
    "chat_template": "the prompt is made by the model's own",
    "documents": "put them into a message",
    "best_of": "one answer is sampled",
    "use_beam_search": "answers are sampled",
    "continue_final_message": "the answer is a message of its own",
}

#: How tokens are drawn. What is neither here nor among those above is the server's own, and is passed on to it.
_SAMPLING: Mapping[str, Any] = {
    **COMMON,
    "stop": str | list[str],
    "logit_bias": dict[str, float],
    "response_format": dict[str, Any],
    "parallel_tool_calls": bool,
}

_ROLES = ("system", "developer", "user", "assistant", "tool")
_PARTS = ("text", "image_url", "input_audio", "audio_url", "video_url", "refusal")


class Chat(OpenAIErrors):
    """`POST /v1/chat/completions`."""

    name = "chat"

    def __init__(self, take: Iterable[str] = ()) -> None:
        """`take` are fields that are refused otherwise and that this server can do: they come in `Call.sampling`.

        "n" is among them: then a call may ask for several answers.
        """
        self._take = frozenset(take)
        self._refused = {name: why for name, why in _REFUSED.items() if name not in self._take}

    def read(self, body: bytes, memory: Memory) -> Call:
        fields = Fields(body)
        call = Call(model=fields.take("model", str) or "", messages=[])
        if (tools := fields.raw("tools")) is not None:
            call.tools = memory.tools(tools, _KIND, function_tools).specs
        self._options(fields, call)
        read = _Reader(memory)
        memory.conversation(fields.required("messages"), "messages", _KIND, read.decode, call, join=False)
        if not call.messages:
            raise DialectError.of_field("messages", "at least one message is needed")
        fields.refuse(self._refused)
        fields.ignore(_IGNORED - self._take)
        rest = {name: decoded(raw, Any, name) for name, raw in fields.rest.items()}
        call.sampling = {**call.sampling, **rest}
        return call

    def body(self, said: Said, call: Call, memory: Memory) -> bytes:
        choices = [
            {"index": at, "message": _message(each, call, memory), "logprobs": None, "finish_reason": _finish(each)}
            for at, each in enumerate((said, *said.others))
        ]
        return msgspec.json.encode({**_head(said, call, ""), "choices": choices, "usage": _usage(said)})

    def events(self, said: Said, call: Call, memory: Memory) -> Iterator[bytes]:
        answers = [(each, remembered(each, call, memory)) for each in (said, *said.others)]
        return self._events(said, call, answers)

    def _events(self, said: Said, call: Call, answers: list[tuple[Said, Answer]]) -> Iterator[bytes]:
        head = _head(said, call, ".chunk")
        if call.include_usage:
            head["usage"] = None
        for at, (each, answer) in enumerate(answers):
            for delta in _deltas(answer):
                yield sse.frame({**head, "choices": [{"index": at, "delta": delta, "finish_reason": None}]})
            yield sse.frame({**head, "choices": [{"index": at, "delta": {}, "finish_reason": _finish(each)}]})
        if call.include_usage:
            yield sse.frame({**head, "choices": [], "usage": _usage(said)})
        yield sse.DONE

    def _options(self, fields: Fields, call: Call) -> None:
        call.stream = fields.take("stream", bool) or False
        options = fields.take("stream_options", dict[str, Any]) or {}
        call.include_usage = options.get("include_usage") is True
        call.max_tokens = cap(fields, "max_completion_tokens", "max_tokens")
        if (count := fields.take("n", int)) is not None and count < 1:
            raise DialectError.of_field("n", "must be at least 1", "integer_below_min_value")
        call.n = count or 1
        if call.n != 1 and "n" not in self._take:
            raise unsupported("n", f"one answer to a request, not {call.n}: send the request {call.n} times")
        call.template_args = fields.take("chat_template_kwargs", dict[str, Any]) or {}
        call.effort = fields.take("reasoning_effort", str)
        if fields.take("add_generation_prompt", bool) is False:
            raise unsupported("add_generation_prompt", "an answer is a message of its own")
        modalities = fields.take("modalities", list[str]) or ["text"]
        if modalities != ["text"]:
            raise unsupported("modalities", "answers are text")
        asked = {name: fields.take(name, kind) for name, kind in _SAMPLING.items()}
        asked["tool_choice"] = tool_choice(fields.take("tool_choice", str | dict[str, Any]), call.tools)
        call.sampling = given(asked)


class _Reader:
    """Reads one request's messages."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def decode(self, raw: msgspec.Raw, place: str) -> Known:
        plain = decoded(raw, dict[str, Any], place)
        role = plain.get("role")
        if role not in _ROLES:
            raise DialectError.of_field(f"{place}.role", f"must be one of {', '.join(_ROLES)}, not {role!r}")
        if plain.get("function_call"):
            raise unsupported(f"{place}.function_call", "use tool_calls")
        _check_parts(plain, place)
        try:
            message = Message.of(plain)
        except MessageError as error:
            raise DialectError.of_field(place, str(error)) from None
        if role == "assistant":
            keys = tuple(call.id for call in message.tool_calls if call.id)
            return self._memory.known([message], said=True, keys=keys)
        if role == "tool":
            if not message.tool_call_id:
                raise DialectError.of_field(f"{place}.tool_call_id", "is required", "missing_required_parameter")
            own = self._memory.own_call_id(message.tool_call_id)
            message = msgspec.structs.replace(message, tool_call_id=own)
        return self._memory.known([message])


def _check_parts(plain: dict[str, Any], place: str) -> None:
    """Raises DialectError for a content part that no model is shown. A refusal is text, said by the model."""
    content = plain.get("content")
    if not isinstance(content, list):
        return
    for at, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind not in _PARTS:
            raise unsupported(f"{place}.content[{at}]", f"parts of type {kind!r}")
        if kind == "refusal":
            content[at] = {"type": "text", "text": part.get("refusal") or ""}


def remembered(said: Said, call: Call, memory: Memory) -> Answer:
    return memory.remember(said, call, "call", (f"chatcmpl-{said.id}",))


def _calls(answer: Answer) -> list[dict[str, Any]]:
    calls = zip(answer.message.tool_calls, answer.call_ids, strict=True)
    return [
        {"id": wire, "type": "function", "function": {"name": call.name, "arguments": call.function.arguments or "{}"}}
        for call, wire in calls
    ]


def _message(said: Said, call: Call, memory: Memory) -> dict[str, Any]:
    answer = remembered(said, call, memory)
    message = answer.shown
    out: dict[str, Any] = {"role": "assistant", "content": message.text or None, "refusal": None}
    if message.reasoning_content:
        out["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        out["tool_calls"] = _calls(answer)
    elif out["content"] is None:
        out["content"] = ""
    return out


def _deltas(answer: Answer) -> Iterator[dict[str, Any]]:
    message = answer.shown
    yield {"role": "assistant", "content": "" if message.text or not message.tool_calls else None}
    for piece in sse.pieces(message.reasoning_content or ""):
        yield {"reasoning_content": piece}
    for piece in sse.pieces(message.text):
        yield {"content": piece}
    for at, call in enumerate(_calls(answer)):
        arguments = call["function"]["arguments"]
        yield {"tool_calls": [{"index": at, **call, "function": {**call["function"], "arguments": ""}}]}
        for piece in sse.pieces(arguments):
            yield {"tool_calls": [{"index": at, "function": {"arguments": piece}}]}


def _head(said: Said, call: Call, kind: str) -> dict[str, Any]:
    head = {"id": f"chatcmpl-{said.id}", "object": f"chat.completion{kind}", "created": said.created}
    return {**head, "model": call.model}


def _finish(said: Said) -> str:
    if said.finish_reason == "length":
        return "length"
    return "tool_calls" if said.message.tool_calls else "stop"


def _usage(said: Said) -> dict[str, Any]:
    completion = said.completion_tokens + sum(other.completion_tokens for other in said.others)
    usage: dict[str, Any] = {
        "prompt_tokens": said.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": said.prompt_tokens + completion,
    }
    if said.cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": said.cached_tokens}
    return usage

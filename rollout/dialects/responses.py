"""OpenAI Responses: requests are read here, their items in `responses_items`, answers written in `responses_answer`.

instructions: text               -> the first message, a system's, for this request only
input: items, or text            -> messages; what the assistant said in items in a row is one message
previous_response_id             -> the conversation that ended in that response, from memory
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rollout.chat.messages import Message
from rollout.dialects import responses_answer, responses_tools, sampling, tools
from rollout.dialects.fields import Fields, unsupported
from rollout.dialects.memory import Memory
from rollout.dialects.openai_errors import OpenAIErrors
from rollout.dialects.responses_items import Items
from rollout.dialects.types import Call, DialectError, Said

_KIND = b"responses"

#: Fields that say nothing to the model.
_IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options"),
        *("prompt_cache_retention", "prompt_cache_options", "truncation", "max_tool_calls", "client_metadata"),
    }
)

_REFUSED: Mapping[str, str] = {
    "background": "an answer is waited for",
    "conversation": "send the conversation, or previous_response_id",
    "prompt": "there are no prompt templates here",
    "top_logprobs": sampling.NO_LOGPROBS,
    "context_management": "the program compacts its conversation itself",
}

_SAMPLING: Mapping[str, Any] = {
    **sampling.COMMON,
    "stop": str | list[str],
    "parallel_tool_calls": bool,
}


class Responses(OpenAIErrors):
    """`POST /v1/responses`."""

    name = "responses"

    def read(self, body: bytes, memory: Memory) -> Call:
        fields = Fields(body)
        call = Call(model=fields.take("model", str) or "", messages=[])
        offered = tools.Tools()
        if (raw := fields.raw("tools")) is not None:
            offered = memory.tools(raw, _KIND, responses_tools.read_tools)
        call.tools = offered.specs
        self._options(fields, call, offered)
        self._conversation(fields, call, memory)
        if not call.messages:
            raise DialectError.of_field("input", "at least one message is needed")
        fields.refuse(_REFUSED)
        fields.ignore(_IGNORED)
        call.left_out = (*offered.left_out, *(f"the field {name}" for name in fields.rest))
        return call

    def body(self, said: Said, call: Call, memory: Memory) -> bytes:
        return responses_answer.body(said, call, memory)

    def events(self, said: Said, call: Call, memory: Memory) -> Iterator[bytes]:
        return responses_answer.events(said, call, memory)

    def error_event(self, error: DialectError) -> bytes:
        return responses_answer.error_event(error)

    def _options(self, fields: Fields, call: Call, offered: tools.Tools) -> None:
        call.stream = fields.take("stream", bool) or False
        call.max_tokens = sampling.cap(fields, "max_output_tokens")
        call.template_args = fields.take("chat_template_kwargs", dict[str, Any]) or {}
        effort = (fields.take("reasoning", dict[str, Any]) or {}).get("effort")
        call.effort = effort if isinstance(effort, str) else None
        if "message.output_text.logprobs" in (fields.take("include", list[str]) or ()):
            raise unsupported("include", sampling.NO_LOGPROBS)
        asked = {name: fields.take(name, kind) for name, kind in _SAMPLING.items()}
        asked["response_format"] = _response_format(fields.take("text", dict[str, Any]) or {})
        choice = fields.take("tool_choice", str | dict[str, Any])
        asked["tool_choice"] = sampling.tool_choice(responses_tools.plain_choice(choice), call.tools)
        call.sampling = sampling.given(asked)
        call.asked = {"names": offered.names, "parallel_tool_calls": asked["parallel_tool_calls"] is not False}

    def _conversation(self, fields: Fields, call: Call, memory: Memory) -> None:
        call.instructions = fields.take("instructions", str) or None
        previous = fields.take("previous_response_id", str)
        given = fields.raw("input")
        if previous is not None:
            self._go_on(previous, call, memory)
            call.asked = {**call.asked, "previous": previous}
        elif call.instructions is not None:
            memory.read([memory.known([Message("system", call.instructions)])], call, join=False)
        if given is None:
            return
        read = Items(memory)
        if bytes(memoryview(given)[:1]) == b'"':
            memory.read([read.text(given)], call, join=True)
            return
        memory.conversation(given, "input", _KIND, read.decode, call, join=True)

    def _go_on(self, previous: str, call: Call, memory: Memory) -> None:
        """Begins with the conversation of an earlier response, whose instructions held for that one only."""
        if (answer := memory.answer(previous)) is None:
            why = "is not known here: it is of another session, or so old that this one has forgotten it"
            text = f"previous_response_id: {previous!r} {why}; send the whole conversation as input"
            raise DialectError(404, text, code="previous_response_not_found", param="previous_response_id")
        if answer.instructions == call.instructions:
            memory.go_on(previous, call)
            return
        conversation = answer.conversation()[1 if answer.instructions is not None else 0 :]
        new = [Message("system", call.instructions)] if call.instructions is not None else []
        memory.read([memory.known([*new, *conversation])], call, join=False)


def _response_format(text: Mapping[str, Any]) -> dict[str, Any] | None:
    """`text.format` as chat completions have it."""
    wanted = text.get("format")
    if not isinstance(wanted, dict) or wanted.get("type") in (None, "text"):
        return None
    if wanted["type"] == "json_object":
        return {"type": "json_object"}
    if wanted["type"] != "json_schema" or not isinstance(wanted.get("schema"), dict):
        raise unsupported("text.format", f"a format of type {wanted['type']!r}")
    kept = {name: wanted[name] for name in ("name", "schema", "strict") if wanted.get(name) is not None}
    return {"type": "json_schema", "json_schema": {"name": "answer", **kept}}

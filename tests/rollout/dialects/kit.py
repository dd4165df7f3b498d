"""What tests of every dialect share: the official SDKs over a server in process, and messages to draw from."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import openai
from hypothesis import strategies as st

from rollout.chat.messages import Function, Message, ToolCall
from rollout.dialects.dialect import Dialect
from rollout.dialects.memory import Memory
from rollout.dialects.types import Call, DialectError, Said

ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {"a": {}, "b": {}}}}


def said(message: Message, identifier: str = "5f0c", **more: Any) -> Said:
    return Said(message=message, id=identifier, created=1_700_000_000, prompt_tokens=20, completion_tokens=7, **more)


def call_of(name: str, arguments: str, identifier: str = "call00000") -> ToolCall:
    return ToolCall(function=Function(name, arguments), id=identifier)


class Played:
    """A server in process: one dialect in front of what a test says, as a transport of the SDKs' HTTP client."""

    def __init__(self, dialect: Dialect, answers: Callable[[Call], Said | DialectError]) -> None:
        self.dialect, self.memory, self._answers = dialect, Memory(), answers
        self.calls: list[Call] = []
        self.bodies: list[dict[str, Any]] = []

    def answer(self, body: bytes) -> tuple[int, str, bytes]:
        self.bodies.append(json.loads(body))
        try:
            call = self.dialect.read(body, self.memory)
            self.calls.append(call)
            match self._answers(call):
                case DialectError() as error:
                    raise error
                case said:
                    pass
        except DialectError as error:
            return error.status, "application/json", self.dialect.error(error)
        if call.stream:
            return 200, "text/event-stream", b"".join(self.dialect.events(said, call, self.memory))
        return 200, "application/json", self.dialect.body(said, call, self.memory)


def openai_client(played: Played) -> openai.OpenAI:
    return openai.OpenAI(
        api_key="k", base_url="http://rollout.test/v1", max_retries=0, http_client=_client(openai, played)
    )


def anthropic_client(played: Played) -> Any:
    anthropic: Any = importlib.import_module("anthropic")
    return anthropic.Anthropic(
        api_key="k", base_url="http://rollout.test", max_retries=0, http_client=_client(anthropic, played)
    )


def _client(sdk: Any, played: Played) -> Any:
    """The SDK's own HTTP client over a transport in process; which httpx it is, only the SDK knows."""
    default = sdk.DefaultHttpxClient
    httpx = importlib.import_module(
        next(base.__module__.split(".")[0] for base in default.__mro__ if base.__name__ == "Client")
    )

    def handle(request: Any) -> Any:
        status, kind, body = played.answer(request.content)
        return httpx.Response(status, content=body, headers={"content-type": kind})

    return default(transport=httpx.MockTransport(handle))


def read(dialect: Dialect, body: Mapping[str, Any], memory: Memory | None = None) -> Call:
    return dialect.read(msgspec.json.encode(body), memory or Memory())


#: Texts that a model may say: whole characters of any kind.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(texts, values, max_size=3).map(lambda value: json.dumps(value, ensure_ascii=False))


@st.composite
def answers(draw: st.DrawFn) -> Message:
    """What a model may say: reasoning, text and calls, each there or not."""
    calls = draw(st.lists(st.tuples(st.sampled_from(["add", "bash", "functions_read"]), arguments), max_size=3))
    return Message(
        "assistant",
        draw(texts) or None,
        draw(texts) or None,
        tuple(call_of(name, text, f"call{at:05d}") for at, (name, text) in enumerate(calls)),
    )

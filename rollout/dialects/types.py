"""What one request asks for, what the model answered, and how a request is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from rollout.chat.messages import Message
from rollout.dialects.answers import Answer
from rollout.errors import RolloutError


class Call(msgspec.Struct, kw_only=True):
    """What one request asks for."""

    model: str
    """As it was asked for; the answer carries the same name."""
    messages: list[Message]
    """The conversation. What was seen before is the very same objects, and so is what the model itself said."""
    tools: Sequence[Mapping[str, Any]] = ()
    """In OpenAI's form; the same object while the request's own tools do not change."""
    sampling: Mapping[str, Any] = {}
    """As asked, by OpenAI's and vLLM's names: temperature, top_p, top_k, stop, seed, response_format, tool_choice..."""
    max_tokens: int | None = None
    """The program's own cap on this answer."""
    template_args: Mapping[str, Any] = {}
    """Chat-template arguments that the request names (`chat_template_kwargs`)."""
    effort: str | None = None
    """How hard to think, where the request says: low, medium, high. Some templates take it as `reasoning_effort`."""
    stream: bool = False
    include_usage: bool = True
    """Whether a stream tells token counts; chat completions ask for it."""
    n: int = 1
    """Answers wanted; more than 1 only from a dialect that was made with `take={"n"}`."""
    session: str | None = None
    """A session's id that the body names (Anthropic's metadata)."""
    left_out: tuple[str, ...] = ()
    """What the request offered or named that the model is not shown, such as a hosted web search; for people."""
    restored: int = 0
    """Answers in the conversation that came back without their reasoning, which was put back."""
    instructions: str | None = None
    """The first message's text, where it holds for this request only, and not for one that goes on from its answer."""
    asked: Mapping[str, Any] = {}
    """What the dialect repeats in its answer, or needs to write it."""
    mark: int = 0
    """Stands for `messages`, within one Memory."""
    previous: Answer | None = None
    """The last remembered answer that the conversation goes on from."""


class Said(msgspec.Struct, kw_only=True):
    """What the model answered to a call."""

    message: Message
    finish_reason: Literal["stop", "length"] = "stop"
    """Dialects say themselves that a turn ended in tool calls."""
    stop_sequence: str | None = None
    """The stop text that ended the answer, where one did."""
    shown: Message | None = None
    """The message without that text and what came behind it, where `message` has them."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    id: str
    """Unique, of letters, digits, `-` and `_`. Every id that the client gets is made of it, so a replay is the same."""
    created: int = 0
    """Seconds since 1970."""
    others: Sequence[Said] = ()
    """Further answers where the call asked for more than one (`n`)."""


class DialectError(RolloutError):
    """A request that is answered with an error, which the dialect writes in its own form (`Dialect.error`)."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        """OpenAI's word for it, such as `unsupported_parameter`; `CONTEXT_LENGTH` for a prompt that is too long."""
        self.param = param
        """The field that is at fault, such as `messages[3].content`."""

    @classmethod
    def of_field(cls, param: str, why: str, code: str | None = None) -> DialectError:
        """400, for a field: "messages[3].role: ..."."""
        return cls(400, f"{param}: {why}", code=code, param=param)


#: The code of a prompt that does not fit the context: programs know it, and compact their conversation.
CONTEXT_LENGTH = "context_length_exceeded"

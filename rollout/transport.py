"""What a transport is: it carries one prompt to a server and brings back ids with their logprobs.

A transport knows one server dialect and nothing of trajectories: it never decides between token-in
and message-in, never tokenizes, never parses tool calls. Entry points of the group
`rollout.transports` name factories: `create(config: TransportConfig) -> Transport`.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from rollout.histogram import Histogram
from rollout.messages import Message

#: How ids are held, here and in a trajectory: 32-bit integers.
IDS = "i"

#: Why a completion ended, in every dialect. "length" includes the context's end; "abort" is a
#: request that the server gave up (a pause in abort mode, a preemption, an abort by name).
FinishReason = Literal["stop", "length", "abort"]


class TokenPrompt:
    """Token-in: the prompt's ids, whole. Never changed once made.

    A conversation's next prompt starts with this one, so it is made from it, and what was encoded for the wire is
    encoded once: a turn costs what is new in it, and a copy.
    """

    __slots__ = ("_before", "_json", "ids")

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids if isinstance(ids, array) else array(IDS, ids)
        """int32."""
        self._json: bytes | None = None
        self._before: tuple[bytes | None, int] = None, 0
        """The JSON of the first so many ids, where a prompt before this one was encoded."""

    def __repr__(self) -> str:
        return f"<TokenPrompt of {len(self.ids)} ids>"

    def extended(self, new: Sequence[int]) -> TokenPrompt:
        """These ids and then the new ones."""
        prompt = TokenPrompt(self.ids + array(IDS, new))
        prompt._before = (self._json, len(self.ids)) if self._json is not None else self._before
        return prompt

    def json(self) -> msgspec.Raw:
        """The ids as JSON's array, to be put into a body as it is."""
        if self._json is None:
            known, length = self._before
            self._json = _appended(known, msgspec.json.encode(self.ids[length:].tolist()))
            self._before = None, 0
        return msgspec.Raw(self._json)


class MessagePrompt:
    """Message-in: the server's chat template makes the prompt. Never changed once made."""

    __slots__ = ("_before", "_json", "messages", "template_args", "tools")

    def __init__(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        template_args: Mapping[str, Any] | None = None,
        *,
        before: MessagePrompt | None = None,
    ) -> None:
        """`template_args` are chat-template arguments (`chat_template_kwargs` on the wire).

        `before` is an earlier prompt: where this one starts with the very same messages, they are not encoded again.
        """
        self.messages, self.tools, self.template_args = messages, tools, template_args or {}
        self._json: bytes | None = None
        self._before: tuple[bytes | None, int] = None, 0
        count = len(before.messages) if before is not None else 0
        if before is not None and count <= len(messages) and all(map(is_, before.messages, messages)):
            self._before = before._json, count if before._json is not None else 0

    def __repr__(self) -> str:
        return f"<MessagePrompt of {len(self.messages)} messages>"

    @property
    def size(self) -> int:
        """Bytes of `json`."""
        return len(memoryview(self.json()))

    def added_to(self, earlier: MessagePrompt) -> tuple[int, int] | None:
        """(messages, bytes) that this prompt has behind an earlier one's; None where it does not start with that."""
        count = len(earlier.messages)
        same = count <= len(self.messages) and all(map(is_, earlier.messages, self.messages))
        if not same or earlier.tools != self.tools or earlier.template_args != self.template_args:
            return None
        return len(self.messages) - count, self.size - earlier.size

    def json(self) -> msgspec.Raw:
        """The messages in OpenAI's form as JSON's array, to be put into a body as it is."""
        if self._json is None:
            known, count = self._before
            self._json = _appended(known, msgspec.json.encode([one.as_openai() for one in self.messages[count:]]))
            self._before = None, 0
        return msgspec.Raw(self._json)


def _appended(known: bytes | None, new: bytes) -> bytes:
    """Two JSON arrays as one."""
    if known is None or known == b"[]":
        return new
    return known if new == b"[]" else known[:-1] + b"," + new[1:]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt to complete."""

    prompt: TokenPrompt | MessagePrompt
    request_id: str
    session_id: str
    """One per trajectory: what a router keeps on one server."""
    group_id: str = ""
    """One per group, whose members are kept together where there are several servers."""
    group_size: int = 1
    """Members that the group has: a server that has the first will have the others."""
    max_tokens: int | None = None
    """Completion length at most; None leaves it to the server."""
    sampling: Mapping[str, Any] = {}
    """The caller's sampling parameters and any other body fields, by OpenAI's or vLLM's names.
    Sent as they are on both routes; a server's refusal of one is shown, not worked around."""
    stop_token_ids: Sequence[int] = ()
    """Ids that end the turn, from the local renderer; beside, not instead of, the caller's own."""
    parent_session_id: str | None = None
    final: bool = False
    """Whether the session ends with this request, where that is known before."""
    priority: int | None = None
    """Lower is sooner, as vLLM has it."""
    cache_salt: str | None = None
    echo_prompt: bool = False
    """Ask for the prompt's ids on token-in too, so that they can be checked (`--verify`)."""


class WeightSpan(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The weight version under which completion tokens [start, end) were sampled."""

    version: str
    start: int
    end: int


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What the server sampled. `completion_ids` and `logprobs` have one length and one source."""

    completion_ids: list[int] | None
    """Sampled ids, stop token included where the server keeps it; from the engine, never
    re-tokenized. None where the server reports no ids at all."""
    logprobs: list[float] | None
    """Natural log of each sampled token's probability; None only where `completion_ids` is."""
    prompt_ids: list[int] | None = None
    """The prompt as the server had it; None where it does not say."""
    finish_reason: FinishReason = "stop"
    message: Message | None = None
    """The server's own reading of the answer; used only where there is no local tokenizer."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """Prompt tokens that the server took from its prefix cache; None where it does not say."""
    weight_versions: tuple[WeightSpan, ...] = ()
    """Empty where the server reports none."""
    request_s: float = 0.0
    """From the first byte sent to the last received, seconds; retries and their waits included."""


class ServerInfo(msgspec.Struct, kw_only=True):
    """What a server says of itself and what a probe saw it do."""

    dialect: str
    """vllm, dynamo, embedded or scripted."""
    version: str | None = None
    models: list[str] = []
    model: str
    """The served name that requests use."""
    tokenizer: str | None = None
    """Folder or hub name of the model's tokenizer, where the server says; it need not exist here."""
    max_model_len: int | None = None
    """Context length in tokens, prompt and completion together; None where unknown."""
    token_route: str | None = None
    """Path of the token-in route in use; None where the server has none."""
    token_routes: list[str] = []
    """Every token-in route that the probe saw work, best first."""
    reports_prompt_ids: bool = False
    """Whether message-in answers the prompt's ids."""
    reports_completion_ids: bool = False
    ids_source: str | None = None
    """Where the ids come from: choice, engine_data, nvext."""
    reports_cached_tokens: bool = False
    reports_weight_versions: bool = False
    weight_version: str | None = None
    """The version of the weights when the server was probed; None where it reports none."""
    keeps_stop_token: bool | None = None
    """Whether the stop token is among the completion's ids; None where the probe could not tell."""
    can_tokenize: bool = False
    """Whether the server has /tokenize and /detokenize (for the server bridge)."""


class ServerLoad(msgspec.Struct, kw_only=True):
    """How busy a server says it is. None is what it does not say."""

    running: int | None = None
    """Requests being decoded."""
    waiting: int | None = None
    """Requests in its queue."""
    cache_usage: float | None = None
    """Share of its key-value cache in use, from 0 to 1."""
    preemptions: int | None = None
    """Requests that it ever put back into its queue for want of cache."""


class Traffic(msgspec.Struct):
    """Bytes of bodies, as they went over the connection; headers are not counted."""

    sent: int = 0
    received: int = 0


class TransportConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a factory gets to build a transport."""

    base_url: str | None = None
    """The server's root, with or without /v1; None for transports without a server."""
    model: str | None = None
    """Served name; None takes the only one, and is an error where there are several."""
    api_key: str | None = msgspec.field(default=None)
    """Sent as a bearer token. Never logged; left out of `repr`."""
    timeout_s: float = 600.0
    """Deadline of one request, its retries included."""
    connect_timeout_s: float = 10.0
    retries: int = 4
    max_connections: int = 4096
    token_route: str | None = None
    """Forces one token-in route by its path."""
    headers: Mapping[str, str] = {}
    options: Mapping[str, Any] = {}
    """What only one transport understands (the scripted one's replies, the embedded one's folder)."""

    def __repr__(self) -> str:
        return f"<TransportConfig {self.base_url or 'in process'} model={self.model}>"


class Transport(Protocol):
    """Carries prompts to one served model."""

    async def connect(self) -> ServerInfo:
        """Opens connections and probes the server; later calls answer what the first one saw.

        Raises ServerError (the server cannot be reached or is none we know) or ConfigError (wrong
        model, wrong key, a route forced that it lacks), each in one sentence with the remedy.
        """
        ...

    async def generate(self, request: Request) -> Reply:
        """Completes one prompt. Raises TransportError. Cancelling closes the request on the server."""
        ...

    async def tokenize(self, prompt: MessagePrompt, *, add_generation_prompt: bool) -> list[int]:
        """The server's own ids for these messages. Raises TransportError where it has no such route."""
        ...

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The server's own text of these ids. Raises TransportError where it has no such route."""
        ...

    async def aclose(self) -> None:
        """Closes connections and, for a server in process, the server. May be called twice."""
        ...


@runtime_checkable
class Watched(Protocol):
    """A transport whose server can be asked how it is."""

    async def check(self) -> None:
        """Raises TransportError where the server cannot serve now."""
        ...

    async def load(self) -> ServerLoad:
        """What its metrics say. Raises TransportError."""
        ...


@runtime_checkable
class Metered(Protocol):
    """A transport that says what went over the wire, and what its server measured."""

    @property
    def traffic(self) -> Traffic:
        """All bodies so far, retries included."""
        ...

    async def first_tokens(self) -> Histogram | None:
        """The server's own times to first token, of every request that it ever answered; None where it keeps none.

        Raises TransportError.
        """
        ...


@runtime_checkable
class Sticky(Protocol):
    """A transport that keeps each trajectory on one server, and must be told when it ends."""

    def release(self, session_id: str) -> None:
        """The trajectory has ended. May be called for one that sent nothing."""
        ...

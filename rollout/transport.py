"""What a transport is: it carries one prompt to a server and brings back ids with their logprobs.

A transport knows one server dialect and nothing of trajectories: it never decides between token-in
and message-in, never tokenizes, never parses tool calls. Entry points of the group
`rollout.transports` name its constructor: `async open(config: TransportConfig) -> Transport`, connected or raising.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from operator import is_
from typing import Any, Literal

import anyio
import msgspec

from rollout.address import shown_url
from rollout.chat.messages import Message
from rollout.errors import ConfigError, TransportError
from rollout.histogram import Histogram

#: How ids are held, here and in a trajectory: 32-bit integers.
IDS = "i"

#: Why a completion ended, in every dialect. "length" includes the context's end; "abort" is a
#: request that the server gave up (a pause in abort mode, a preemption, an abort by name).
FinishReason = Literal["stop", "length", "abort"]

#: What becomes of requests in flight while weights are loaded: kept (and gone on with under the new weights), waited
#: for, or aborted (and resumed from their sampled tokens by us).
InFlight = Literal["keep", "wait", "abort"]


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
    without_logprobs: bool = False
    """Whether nothing computes logprobs there (Dynamo's mocker): each is NaN, which no loss can use unseen."""
    prompt_ids: Sequence[int] | None = None
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
    owned_by: str | None = None
    """The model's owner, as its list of models says: it tells dialects apart."""
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
    """What `open` gets."""

    base_url: str | None = None
    """The server's root, with or without /v1; None for transports without a server."""
    model: str | None = None
    """Served name; None takes the only one, and is an error where there are several."""
    api_key: str | None = msgspec.field(default=None)
    """Sent as a bearer token. Never logged; left out of `repr`."""
    timeout_s: float | None = 600.0
    """Deadline of one request, its retries included; None leaves it to the caller, and retries end by their number."""
    weights_timeout_s: float = 600.0
    """Deadline of loading weights, and of a pause that waits for what runs."""
    connect_timeout_s: float = 10.0
    retries: int = 4
    max_connections: int = 4096
    token_route: str | None = None
    """Forces one token-in route by its path."""
    headers: Mapping[str, str] = {}
    options: Mapping[str, Any] = {}
    """What only one transport understands (the scripted one's replies, the embedded one's folder)."""

    def __repr__(self) -> str:
        return f"<TransportConfig {shown_url(self.base_url) if self.base_url else 'in process'} model={self.model}>"


class Transport(ABC):
    """Carries prompts to one served model. The whole contract; there is nothing to be asked about beside it.

    A transport exists only once it is connected: `await open(config)` is its constructor. Subclass this: what is not
    said below is answered as a server answers that cannot do it. `tests/transports/contract.py` holds what every
    transport must do.
    """

    info: ServerInfo
    """What the server said and did when it was opened."""

    @abstractmethod
    async def generate(self, request: Request) -> Reply:
        """Completes one prompt. Raises TransportError. Cancelling closes the request on the server."""

    @abstractmethod
    async def aclose(self) -> None:
        """Closes connections and, for a server in process, the server. May be called twice.

        What is asked for afterwards raises ConnectionFailed.
        """

    async def tokenize(self, prompt: MessagePrompt, *, add_generation_prompt: bool) -> list[int]:
        """The server's own ids for these messages. Raises TransportError where it has no such route."""
        raise TransportError(f"{self!r} has no /tokenize; name a tokenizer by --tokenizer")

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The server's own text of these ids. Raises TransportError where it has no such route."""
        raise TransportError(f"{self!r} has no /detokenize; name a tokenizer by --tokenizer")

    async def check(self) -> None:  # noqa: B027  # what cannot be asked is well
        """Whether the server can serve now what it served when it was opened. Raises TransportError where it cannot.

        Asks over connections of its own, within seconds, whatever is in flight. Raises NotSent where the question
        could not leave this machine: that says nothing of the server.
        """

    async def load(self) -> ServerLoad:
        """What its metrics say. Raises TransportError, and ConfigError where it keeps none."""
        raise ConfigError(f"{self!r} does not say how busy it is")

    async def first_tokens(self) -> Histogram | None:
        """The server's own times to first token, of every request that it ever answered; None where it keeps none.

        Raises TransportError.
        """
        return None

    @property
    def traffic(self) -> Traffic:
        """All bodies so far, retries included."""
        return Traffic()

    def release(self, session_id: str) -> None:  # noqa: B027  # most transports keep nothing of a trajectory
        """The trajectory has ended. May be called for one that sent nothing."""

    async def pause(self, mode: InFlight = "keep") -> None:
        """Stops sampling; new requests wait. `keep` freezes what runs, `wait` lets it end, `abort` ends it.

        This and the next two raise TransportError, and ConfigError where the server cannot be told to.
        """
        raise self._fixed_weights()

    async def resume(self) -> None:
        """Goes on after `pause`."""
        raise self._fixed_weights()

    async def update_weights(self, version: str, path: str | None) -> None:
        """Loads a folder that the server can read (None where it has the weights already), and names the version."""
        raise self._fixed_weights()

    def _fixed_weights(self) -> ConfigError:
        return ConfigError(f"{self.info.dialect}: this server's weights cannot be changed from here; vLLM's can")

    async def abort(self, request_ids: Sequence[str]) -> None:  # noqa: B027  # cancelling is enough for most
        """Ends these requests on the server, where it can be told by name; elsewhere cancelling is what ends them.

        Names that the server does not know are passed over. Raises TransportError.
        """


#: Names from before there was one contract.
Watched = Metered = Sticky = WeightControl = Transport

#: What an entry point of group `rollout.transports` names. Raises ServerError (the server cannot be reached or is none
#: we know) or ConfigError (wrong model, wrong key, a route forced that it lacks), each in one sentence with the remedy.
Open = Callable[[TransportConfig], Awaitable[Transport]]

#: What an object of another make may have of the contract.
_CAPABILITIES = (
    "tokenize", "detokenize", "check", "load", "first_tokens", "release", "pause", "resume",
    "update_weights", "abort",
)  # fmt: skip


async def opened(made: Any) -> Transport:
    """The open transport behind what a factory gave: one that is open, one to be awaited, one that has `connect()`.

    What cannot be connected is closed again.
    """
    if inspect.isawaitable(made):
        made = await made
    if not hasattr(made, "connect"):
        transport: Transport = made if isinstance(made, Transport) else _Bridged(made, made.info)
        return transport
    try:
        info = await made.connect()
    except BaseException:
        with anyio.CancelScope(shield=True):
            await made.aclose()
        raise
    return made if isinstance(made, Transport) else _Bridged(made, info)


class _Bridged(Transport):
    """An object that has some of the contract, such as a transport from before `open` was the constructor."""

    def __init__(self, made: Any, info: ServerInfo) -> None:
        self.info = info
        self._made = made
        for name in _CAPABILITIES:
            if (method := getattr(made, name, None)) is not None:
                setattr(self, name, method)

    def __repr__(self) -> str:
        return repr(self._made)

    async def generate(self, request: Request) -> Reply:
        """See `Transport`."""
        reply: Reply = await self._made.generate(request)
        return reply

    async def aclose(self) -> None:
        """See `Transport`."""
        await self._made.aclose()

    @property
    def traffic(self) -> Traffic:
        """See `Transport`."""
        found: Traffic = getattr(self._made, "traffic", None) or Traffic()
        return found

"""What a transport is: it carries one prompt to a server and brings back ids with their logprobs.

A transport knows one server dialect and nothing of trajectories: it never decides between token-in
and message-in, never tokenizes, never parses tool calls. Entry points of the group
`rollout.transports` name its constructor: `async open(config: TransportConfig) -> Transport`, connected or raising.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

import anyio
import msgspec

from rollout.address import shown_url
from rollout.errors import ConfigError, TransportError
from rollout.histogram import Histogram
from rollout.moved import forward_names
from rollout.request import (
    FinishReason,
    LogprobsMode,
    MessagePrompt,
    Reply,
    Request,
    Sampling,
    TokenPrompt,
    WeightSpan,
)

__all__ = [
    "Transport", "TransportConfig", "Open", "opened", "ServerInfo", "ServerLoad", "Traffic", "InFlight",
    "Request", "Reply", "TokenPrompt", "MessagePrompt", "WeightSpan", "FinishReason", "Sampling", "LogprobsMode",
]  # fmt: skip

#: What becomes of requests in flight while weights are loaded: kept (and gone on with under the new weights), waited
#: for, or aborted (and resumed from their sampled tokens by us).
InFlight = Literal["keep", "wait", "abort"]


class ServerInfo(msgspec.Struct, kw_only=True):
    """What a server says of itself and what a probe saw it do."""

    dialect: str
    """vllm, sglang, dynamo, embedded or scripted."""
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
    vocab_size: int | None = None
    """How many ids the model takes; None where the server does not say, nor names a folder that is on this machine."""
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
    logprobs_mode: LogprobsMode | None = None
    """What its logprobs are of; None where the probe could not tell."""
    sampling_defaults: Sampling | None = None
    """How it samples where a request says nothing; None where it does not say."""
    keeps_stop_token: bool | None = None
    """Whether the stop token is among the completion's ids; None where the probe could not tell."""
    reports_routed_experts: bool = False
    """Whether it was seen to answer routed experts; servers other than vLLM are only asked where a run wants them."""
    reports_sampling_mask: bool = False
    """The same of sampling masks, on its token-in route."""
    masks_by_ids_only: bool = False
    """Whether message-in answers no sampling mask where token-in does, as with vLLM."""
    image_token: int | None = None
    """The id that stands for an image in prompts of ids; None where the token-in route takes none with images."""
    can_tokenize: bool = False
    """Whether the server has /tokenize and /detokenize (for the server bridge)."""
    tool_fields: Mapping[str, Any] = {}
    """What the server adds to a tool that leaves it out before the chat template sees it, at the tool's end and, as an
    object, at its function's."""


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
    routed_experts: bool = False
    """Whether requests will ask for routed experts: then opening finds out whether the server reports them."""
    sampling_mask: bool = False
    """The same of sampling masks."""
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
        return ConfigError(
            f"{self.info.dialect}: this server's weights cannot be changed from here; vLLM's and SGLang's can"
        )

    async def abort(self, request_ids: Sequence[str]) -> None:  # noqa: B027  # cancelling is enough for most
        """Ends these requests on the server, where it can be told by name; elsewhere cancelling is what ends them.

        Names that the server does not know are passed over. Raises TransportError.
        """


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


forward_names("rollout.transport")

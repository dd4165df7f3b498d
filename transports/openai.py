"""What the dialects share: the shapes of OpenAI's answers, and the merging of lists."""

from __future__ import annotations

import base64
import contextlib
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any

import anyio
import anyio.to_thread
import msgspec

from rollout.chat.messages import Message
from rollout.door import Refused, check_logprobs
from rollout.errors import (
    AuthenticationFailed,
    ConfigError,
    ConnectionFailed,
    MalformedReply,
    MessageError,
    ModelNotFound,
    RequestRefused,
    RequestTimeout,
    ServerBusy,
    ServerChanged,
    ServerError,
    TransportError,
)
from rollout.histogram import Histogram
from rollout.request import FinishReason, MessagePrompt, Reply, Request, TokenPrompt, WeightSpan
from rollout.transport import ServerInfo, ServerLoad, Traffic, Transport, TransportConfig
from transports.http.answers import RETRY_STATUSES
from transports.http.client import Answer, HttpClient, decode
from transports.http.metrics import read_first_tokens, read_load
from transports.large import LARGE


class ModelCard(msgspec.Struct):
    """One entry of /v1/models."""

    id: str
    owned_by: str = ""
    root: str | None = None
    max_model_len: int | None = None
    """vLLM's."""
    context_window: int | None = None
    """Dynamo's; 0 where unknown."""

    @property
    def context(self) -> int | None:
        """Tokens; None where it does not say."""
        return self.max_model_len or self.context_window or None


class ModelList(msgspec.Struct):
    data: list[ModelCard] = []


#: A token's id, as it is read from JSON.
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class TokenLogprob(msgspec.Struct, gc=False):
    """One entry of `logprobs.content`. The generate route adds `token_id` on vLLM 0.32 and later."""

    logprob: float | None = None
    token: str | None = None
    token_id: TokenId | None = None


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob] | None = None


class PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None

    @property
    def cached_tokens(self) -> int | None:
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None


class Span(msgspec.Struct, gc=False):
    """One entry of `weight_versions`."""

    version: str | int
    start: int
    end: int


#: A probe that meets a passing fault must not conclude that a route is absent; it must not be slow either.
PROBE_RETRIES = 2

#: Within so many seconds a server that is there lists its models: a silent one is named soon.
OPEN_S = 4.5

#: Within so many seconds it has completed one token, also behind the queue of others' requests.
PROBE_S = 60.0

#: Large answers that are read at once: each is in memory several times meanwhile.
READERS = 2


class _Tokenized(msgspec.Struct):
    tokens: list[TokenId]


_MODELS = msgspec.json.Decoder(ModelList)
_TOKENIZED = msgspec.json.Decoder(_Tokenized)


def read_tokens(answer: Answer, path: str) -> list[int]:
    """The ids that a route gives for messages or for a text. Raises MalformedReply."""
    tokenized: _Tokenized = decode(_TOKENIZED, answer, path)
    return tokenized.tokens


class ServedTransport(Transport):
    """What the HTTP dialects share: one client, and what a probe by it saw."""

    health_path: str | None = "/health"
    """What is asked for health beside the list of models; None where that says more than it costs."""

    def __init__(self, client: HttpClient, info: ServerInfo, *, weights_timeout_s: float = 600.0) -> None:
        """`client` is closed with the transport."""
        self.client = client
        self.info = info
        self._weights_timeout_s = weights_timeout_s
        self._readers = anyio.CapacityLimiter(READERS)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.client.base_url} {self.info.token_route or 'no token route'}>"

    async def check(self) -> None:
        """See `rollout.transport.Transport`. A refusal is an answer: raises what says that it cannot serve.

        A frontend lives on without workers, and then lists no model; a server may be another one by now.
        """
        try:
            # A gateway without this route may serve well.
            with contextlib.suppress(RequestRefused):
                if self.health_path is not None:
                    await self.client.get(self.health_path)
            cards = await _listed(self.client)
        except ServerBusy as error:
            if error.status not in RETRY_STATUSES:
                raise
        else:
            await self._must_be_the_same(cards)

    async def _must_be_the_same(self, cards: Sequence[ModelCard]) -> None:
        url, info = self.client.base_url, self.info
        card = next((card for card in cards if card.id == info.model), None)
        if card is None:
            names = ", ".join(card.id for card in cards) or "no model"
            raise ModelNotFound(f"{url} serves {info.model!r} no more; it serves {names}", status=404)
        if info.max_model_len is not None and card.context is not None and card.context < info.max_model_len:
            raise ServerChanged(f"{url} has a context of {card.context} tokens, and had {info.max_model_len}")
        if info.owned_by is not None and card.owned_by != info.owned_by:
            raise ServerChanged(f"{url}: the model is owned by {card.owned_by!r}, and was by {info.owned_by!r}")

    async def load(self) -> ServerLoad:
        """See `rollout.transport.Transport`."""
        return read_load(await self._metrics())

    async def first_tokens(self) -> Histogram | None:
        """See `rollout.transport.Transport`."""
        return read_first_tokens(await self._metrics())

    @property
    def traffic(self) -> Traffic:
        """See `rollout.transport.Transport`."""
        return self.client.traffic

    async def _read(self, read: Callable[..., Reply], answer: Answer, *args: Any) -> Reply:
        """What an answer says: of a large one in a thread. See `transports.large`."""
        if len(answer.body) <= LARGE:
            return read(answer, *args)
        return await anyio.to_thread.run_sync(read, answer, *args, limiter=self._readers)

    async def _metrics(self) -> str:
        return (await self.client.get("/metrics")).body.decode("utf-8", "replace")

    async def aclose(self) -> None:
        """See `rollout.transport.Transport`."""
        await self.client.aclose()


@contextlib.asynccontextmanager
async def opening(config: TransportConfig, client: HttpClient | None = None) -> AsyncIterator[HttpClient]:
    """The client to probe a server with, the given one or a new one: closed again where opening fails."""
    client = client or client_of(config)
    try:
        yield client
    except BaseException as error:
        with anyio.CancelScope(shield=True):
            await client.aclose()
        if isinstance(error, TransportError):
            raise ServerError(f"{client.base_url} cannot be used: {error}") from error
        raise


async def probe_call(client: HttpClient, path: str, body: Any) -> Answer:
    """Tries a route. Raises TransportError where it is refused, and ServerError where every request would be lost."""
    try:
        return await client.post(path, body, retries=PROBE_RETRIES, timeout_s=PROBE_S)
    except AuthenticationFailed as error:
        if error.status == 403:  # newer servers say so of a route that is not enabled
            raise
        raise _refused_key(client, error) from error
    except (ConnectionFailed, RequestTimeout) as error:
        raise ServerError(f"{client.base_url} lists its models but completes nothing: {error}") from error


def probe_request(prompt: TokenPrompt | MessagePrompt, **changes: Any) -> Request:
    """A tiny greedy request, to see what comes back."""
    fields: Mapping[str, Any] = {"max_tokens": 1, "sampling": {"temperature": 0}, **changes}
    return Request(prompt=prompt, request_id="probe", session_id="probe", **fields)


@cache
def probe_image() -> str:
    """A grey square, as large as any model takes, as a `data:` address."""
    side = 64
    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    pixels = zlib.compress((b"\0" + b"\x80" * side) * side)
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in chunks
    )
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def client_of(config: TransportConfig, **changes: Any) -> HttpClient:
    """The client that a configuration describes. Raises ConfigError without an address."""
    if not config.base_url:
        raise ConfigError("this transport needs the server's address: give --base-url")
    return HttpClient(
        config.base_url,
        api_key=config.api_key,
        timeout_s=config.timeout_s,
        connect_timeout_s=config.connect_timeout_s,
        retries=config.retries,
        max_connections=config.max_connections,
        headers=config.headers,
        **changes,
    )


async def list_models(client: HttpClient) -> list[ModelCard]:
    """The served models. Raises ServerError where there is no server, or it refuses, within `OPEN_S`."""
    try:
        return await _listed(client, retries=PROBE_RETRIES, timeout_s=OPEN_S)
    except AuthenticationFailed as error:
        raise _refused_key(client, error) from error
    except (ConnectionFailed, RequestTimeout) as error:
        said = str(error).removeprefix(f"{client.base_url}/v1/models: ")
        raise ServerError(f"no server answers at {client.base_url}: {said}") from error
    except TransportError as error:
        raise ServerError(f"{client.base_url} does not answer as a model server: {error}") from error


def _refused_key(client: HttpClient, error: TransportError) -> ServerError:
    return ServerError(
        f"{client.base_url} refused the API key: {error}; name the variable that holds it by --api-key-env"
    )


async def _listed(client: HttpClient, **limits: Any) -> list[ModelCard]:
    models: ModelList = decode(_MODELS, await client.get("/v1/models", **limits), "/v1/models")
    return models.data


def choose_model(cards: Sequence[ModelCard], wanted: str | None, url: str) -> ModelCard:
    """The model to use: the one that was named, or the only one. Raises ConfigError, listing what there is."""
    names = ", ".join(card.id for card in cards) or "none"
    if wanted is None:
        if len(cards) == 1:
            return cards[0]
        raise ConfigError(f"{url} serves {len(cards)} models ({names}): name one by -m")
    found = next((card for card in cards if card.id == wanted), None)
    if found is None:
        raise ConfigError(f"{url} does not serve {wanted!r}; it serves: {names}")
    return found


def choose_route(info: ServerInfo, forced: str | None, url: str) -> str | None:
    """The token-in route to use: the forced one, or the best of those that work. Raises ConfigError, listing those."""
    if forced is not None and forced not in info.token_routes:
        working = ", ".join(info.token_routes) or "none"
        raise ConfigError(f"{url} has no token route {forced!r}; those that work: {working}")
    return forced or next(iter(info.token_routes), None)


def merged(first: Any, then: Iterable[Any]) -> list[Any]:
    """The caller's list, then ours, in order and without repeats."""
    own = first if isinstance(first, list | tuple) else [] if first is None else [first]
    return list(dict.fromkeys([*own, *then]))


def finish_reason(value: str | None) -> FinishReason:
    """The reason in our words: a tool call or a stop string ends a turn like a stop token."""
    if value == "length":
        return "length"
    return "abort" if value in ("abort", "cancelled", "error") else "stop"


def server_message_of(message: Mapping[str, Any] | None) -> Message | None:
    """The server's own reading of the answer, if it can be read."""
    if not message:
        return None
    try:
        return Message.of({**message, "role": message.get("role") or "assistant"})
    except MessageError:
        return None


def weight_spans(spans: Sequence[Span] | None) -> tuple[WeightSpan, ...]:
    """The spans as the server gave them; `rollout.tokens.verify.check_reply` checks that they cover the completion."""
    return tuple(WeightSpan(str(span.version), span.start, span.end) for span in spans or ())


def paired(ids: list[int], logprobs: Sequence[float | None] | None) -> list[float]:
    """The logprobs of these ids. Raises MalformedReply unless there is one for each, and each is one."""
    if logprobs is None:
        raise MalformedReply(f"the server answered {len(ids)} ids but no logprobs")
    if len(logprobs) != len(ids):
        raise MalformedReply(f"the server answered {len(ids)} ids but {len(logprobs)} logprobs")
    try:
        check_logprobs(logprobs)
    except Refused as refused:
        raise MalformedReply(f"the server answered a logprob that cannot be used: {refused}") from refused
    return list(logprobs)  # type: ignore[arg-type]  # no None is left


def content_logprobs(logprobs: ChatLogprobs | None) -> list[float | None] | None:
    if logprobs is None or logprobs.content is None:
        return None
    return [entry.logprob for entry in logprobs.content]

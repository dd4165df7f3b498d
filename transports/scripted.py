"""A deterministic double that answers from a list: for faults that no real server can be made to show.

    transport = ScriptedTransport([reply("4"), Fault(ServerBusy("full")), Stalled(), reply("5", logprobs=[-1.0])])

Each request takes the next entry. Ids are made by `encode`: by default one id per UTF-8 byte, and STOP for the
end of a turn. Message-in prompts are rendered by `render`, so that prompts of turn 2 start with those of turn 1.

`well = False` takes the server away: whatever is asked then fails as it fails over a connection. With `weights=True`
the server can be paused and updated. With `fields=True` it is a mixture of experts that reports `experts_of` and
`kept_with` where they are asked for. `tests/transports/contract.py` holds the double to what real ones do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import anyio
import msgspec

from rollout.chat.messages import Message
from rollout.errors import ConnectionFailed, ServerError, TransportError
from rollout.histogram import Histogram
from rollout.request import FinishReason, MessagePrompt, Reply, Request, Sampling, WeightSpan
from rollout.token_fields import Blob, RoutedExperts, SamplingMask
from rollout.transport import InFlight, ServerInfo, ServerLoad, Transport, TransportConfig

STOP = 256
"""Ends a turn."""
OPEN = 257
"""Opens a message: OPEN role NEWLINE text STOP."""


class Scripted(msgspec.Struct, frozen=True, kw_only=True):
    """A reply to give. None in a list's place leaves it out of the answer."""

    text: str = ""
    finish_reason: FinishReason = "stop"
    completion_ids: list[int] | None = None
    """None encodes `text`."""
    logprobs: list[float] | None = None
    """None gives -0.5 for each id."""
    prompt_ids: list[int] | None = None
    """None echoes what came in."""
    without: frozenset[str] = frozenset()
    """Fields that the server does not report: completion_ids, logprobs, prompt_ids, message, routed_experts,
    sampling_mask."""
    cached_tokens: int | None = None
    weight_versions: tuple[WeightSpan, ...] = ()
    routed_experts: RoutedExperts | None = None
    """What it reports, asked for or not; None leaves it to the transport."""
    sampling_mask: SamplingMask | None = None


class Fault(msgspec.Struct, frozen=True):
    """A request that fails."""

    error: TransportError


class Stalled(msgspec.Struct, frozen=True):
    """A request that is never answered: it ends when it is cancelled."""


class Held(msgspec.Struct, frozen=True):
    """A reply that waits until `release` is called: for tests that must be in the middle of a turn."""

    reply: Scripted
    event: anyio.Event = msgspec.field(default_factory=anyio.Event)

    def release(self) -> None:
        self.event.set()


Entry = Scripted | Fault | Stalled | Held


def reply(text: str = "", **fields: Any) -> Scripted:
    """A reply of some text; see `Scripted` for the other fields."""
    without = frozenset(fields.pop("without", ()))
    return Scripted(text=text, without=without, **fields)


def encode_bytes(text: str) -> list[int]:
    return list(text.encode("utf-8", "surrogatepass"))


def render_bytes(messages: Sequence[Message]) -> list[int]:
    """A prompt in which every message is OPEN role NEWLINE text STOP, and the generation prompt follows."""
    ids: list[int] = []
    for message in messages:
        ids += [OPEN, *encode_bytes(f"{message.role}\n{message.text}"), STOP]
    return [*ids, OPEN, *encode_bytes("assistant\n")]


#: Of the mixture that it plays.
LAYERS, TOP_K, EXPERTS = 2, 2, 8


def experts_of(ids: Sequence[int], start: int = 0) -> RoutedExperts:
    """The experts of the positions from `start` on: of each, those that its id and all before it give."""
    state, data = 7, bytearray()
    for at, one in enumerate(ids):
        state = (31 * state + one) % 65_521
        if at >= start:
            data += bytes(state // EXPERTS**turn % EXPERTS for turn in range(LAYERS * TOP_K))
    return RoutedExperts(data=Blob(bytes(data)), layers=LAYERS, top_k=TOP_K)


def kept_with(sampled: int) -> list[int]:
    """The ids that one was drawn from."""
    return [sampled, *range(1, 1 + sampled % 3)]


class ScriptedTransport(Transport):
    """Answers from a list of entries, and keeps the requests it saw."""

    def __init__(
        self,
        entries: Iterable[Entry],
        *,
        encode: Callable[[str], list[int]] = encode_bytes,
        render: Callable[[Sequence[Message]], list[int]] = render_bytes,
        stop_id: int = STOP,
        info: ServerInfo | None = None,
        connect_error: ServerError | None = None,
        weights: bool = False,
        fields: bool = False,
    ) -> None:
        """`weights` says whether it can be paused, and its weights changed; `fields` whether it reports routed experts
        and sampling masks."""
        self.requests: list[Request] = []
        self.cancelled = 0
        """Requests that the caller gave up."""
        self.closed = False
        self.well = True
        """Whether the server is there."""
        self.load_now = ServerLoad()
        """What `load` answers; where it leaves `running` out, it is the number of requests in flight."""
        self._pause_mode: InFlight | None = None
        self.pushed: list[tuple[str, str | None]] = []
        """Versions and folders of weights that were loaded."""
        self._controls_weights, self._fields = weights, fields
        self._running: dict[anyio.CancelScope, str] = {}
        """Requests in flight, and their ids: callers may use one twice."""
        self._changed = anyio.Event()
        self._arrived = anyio.Event()
        self._entries = deque(entries)
        self._encode, self._render, self._stop_id = encode, render, stop_id
        self._connect_error = connect_error
        self._info = info or ServerInfo(
            dialect="scripted",
            model="scripted",
            models=["scripted"],
            token_route="scripted",
            token_routes=["scripted"],
            reports_prompt_ids=True,
            reports_completion_ids=True,
            logprobs_mode="raw_logprobs",
            sampling_defaults=Sampling(),
            reports_routed_experts=fields,
            reports_sampling_mask=fields,
        )

    def __repr__(self) -> str:
        return f"<ScriptedTransport {len(self._entries)} entries left, {len(self.requests)} requests>"

    async def wait_for(self, count: int) -> None:
        """Returns when `count` requests have arrived: for tests that must be in the middle of a turn."""
        while len(self.requests) < count:
            await self._arrived.wait()

    @property
    def info(self) -> ServerInfo:
        """What it says of itself; a test may change it."""
        return self._info

    @info.setter
    def info(self, value: ServerInfo) -> None:
        self._info = value

    async def connect(self) -> ServerInfo:
        """Opens it, again where it was closed: see `rollout.transport.opened`. Raises `connect_error`."""
        if self._connect_error is not None:
            raise self._connect_error
        if not self.well:
            raise ServerError("no server answers: the script says that it is gone")
        self.closed = False
        return self._info

    def add(self, entry: Entry) -> None:
        """What the request after those listed so far will be answered."""
        self._entries.append(entry)

    async def generate(self, request: Request) -> Reply:
        """Takes the next entry. Raises its error, or TransportError where none is left."""
        self._must_be_there()
        self.requests.append(request)
        arrived, self._arrived = self._arrived, anyio.Event()
        arrived.set()
        if not self._entries:
            raise TransportError(f"the script has no entry for request {len(self.requests)}")
        entry = self._entries.popleft()
        with anyio.CancelScope() as scope:
            self._running[scope] = request.request_id
            try:
                entry = await self._settled(entry)
            except anyio.get_cancelled_exc_class():
                self.cancelled += not scope.cancel_called
                raise
            finally:
                del self._running[scope]
                self._tell()
        if scope.cancelled_caught:  # aborted, by its name or by a pause
            entry = Scripted(completion_ids=[], finish_reason="abort")
        if isinstance(entry, Fault):
            raise entry.error
        assert isinstance(entry, Scripted)
        return self._answer(entry, request)

    async def _settled(self, entry: Entry) -> Scripted | Fault:
        # Every server takes a moment: what runs beside must be able to.
        await anyio.lowlevel.checkpoint()
        if isinstance(entry, Stalled):
            await anyio.sleep_forever()
        if isinstance(entry, Held):
            await entry.event.wait()
            entry = entry.reply
        while self._pause_mode is not None:
            await self._changed.wait()
        assert isinstance(entry, Scripted | Fault)
        return entry

    async def tokenize(self, prompt: MessagePrompt, *, add_generation_prompt: bool) -> list[int]:
        """The ids of `render`, without the generation prompt where it is not wanted."""
        self._must_be_there()
        ids = self._render(prompt.messages)
        return ids if add_generation_prompt else ids[: -1 - len("assistant\n")]

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of bytes; markers are left out."""
        self._must_be_there()
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    async def check(self) -> None:
        """See `rollout.transport.Transport`."""
        self._must_be_there()

    async def load(self) -> ServerLoad:
        """See `rollout.transport.Transport`."""
        self._must_be_there()
        if self.load_now.running is None:
            return msgspec.structs.replace(self.load_now, running=len(self._running))
        return self.load_now

    async def first_tokens(self) -> Histogram | None:
        """None: it keeps none."""
        self._must_be_there()
        return None

    async def pause(self, mode: InFlight = "keep") -> None:
        """See `rollout.transport.Transport`."""
        self._must_control()
        self._pause_mode = mode
        if mode == "abort":
            await self.abort(list(self._running.values()))
        while mode == "wait" and self._running:
            await self._changed.wait()

    async def resume(self) -> None:
        """See `rollout.transport.Transport`."""
        self._must_control()
        self._pause_mode = None
        self._tell()

    async def update_weights(self, version: str, path: str | None) -> None:
        """See `rollout.transport.Transport`."""
        self._must_control()
        self.pushed.append((version, path))

    async def abort(self, request_ids: Sequence[str]) -> None:
        """See `rollout.transport.Transport`."""
        self._must_be_there()
        for scope, name in list(self._running.items()):
            if name in request_ids:
                scope.cancel()

    async def aclose(self) -> None:
        """What is asked for later fails, until `connect` opens it again."""
        self.closed = True

    def _must_be_there(self) -> None:
        if self.closed:
            raise ConnectionFailed("this transport was closed")
        if not self.well:
            raise ConnectionFailed("the script says that it is gone")

    def _must_control(self) -> None:
        self._must_be_there()
        if not self._controls_weights:
            raise self._fixed_weights()

    def _tell(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _answer(self, entry: Scripted, request: Request) -> Reply:
        ids = entry.completion_ids
        if ids is None:
            ids = self._encode(entry.text) + ([self._stop_id] if entry.finish_reason == "stop" else [])
        prompt = request.prompt
        is_messages = isinstance(prompt, MessagePrompt)
        sent = self._render(prompt.messages) if isinstance(prompt, MessagePrompt) else list(prompt.ids)
        reported = sent if is_messages or request.echo_prompt else None
        fields: dict[str, Any] = {
            "completion_ids": ids,
            "logprobs": entry.logprobs if entry.logprobs is not None else [-0.5] * len(ids),
            "prompt_ids": entry.prompt_ids if entry.prompt_ids is not None else reported,
            "message": Message("assistant", entry.text or None),
            "routed_experts": entry.routed_experts,
            "sampling_mask": entry.sampling_mask,
        }
        start = request.routed_experts_from
        if self._fields and ids and start is not None and entry.routed_experts is None:
            fields["routed_experts"] = experts_of([*(entry.prompt_ids or sent), *ids][:-1], start)
        if self._fields and request.sampling_mask and entry.sampling_mask is None:
            fields["sampling_mask"] = SamplingMask.of(map(kept_with, ids))
        fields.update(dict.fromkeys(entry.without))
        return Reply(
            **fields,
            finish_reason=entry.finish_reason,
            prompt_tokens=len(sent),
            cached_tokens=entry.cached_tokens,
            weight_versions=entry.weight_versions,
        )


async def open(config: TransportConfig) -> ScriptedTransport:
    """Entry point `scripted`: `options["replies"]` is a list of texts."""
    return ScriptedTransport([reply(text) for text in config.options.get("replies", ())])

"""Carries prompts to SGLang.

Three things are otherwise than with other servers. A request is ended by its name: SGLang notices a dropped connection
late, after 98 tokens or 20 seconds. Its name is made anew for each try, because a name that still runs is refused, and
no name begins as another does, because SGLang aborts every request whose name begins as the one it is told. And a pause
that waits for what runs does not exist there: new prompts are held back here until nothing runs, and then it is paused.

`sglang.wire` has what goes over the wire, `sglang.probe` what is asked when it is opened.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Sequence
from typing import Any, get_args

import anyio
import msgspec

from rollout.errors import ConfigError, RequestRefused, RequestTimeout, TransportError
from rollout.histogram import Histogram
from rollout.log import get_logger
from rollout.request import MessagePrompt, Reply, Request, TokenPrompt
from rollout.transport import InFlight, ServerInfo, ServerLoad, TransportConfig
from transports.fields import tell_unreported
from transports.http.client import HttpClient, decode
from transports.openai import ModelCard, ServedTransport, opening, read_tokens
from transports.sglang.probe import SERVER_INFO, Keep, Probe, named_as_started, tokenize_body
from transports.sglang.wire import (
    CHAT,
    DETOKENIZE,
    GENERATE,
    TOKENIZE,
    Ways,
    chat_body,
    check_prompt,
    generate_body,
    read_chat,
    read_generate,
    read_text,
)

LOADS = "/v1/loads?include=core"
ABORT = "/abort_request"
PAUSE = "/pause_generation"
CONTINUE = "/continue_generation"
LOAD_WEIGHTS = "/update_weights_from_disk"
NAME_WEIGHTS = "/update_weight_version"

#: Seconds for what a server does at once.
CONTROL_S = 30.0
CONTROL_RETRIES = 2

#: Seconds for ids of a text, retries included, behind the work of a busy server.
TOKENIZE_S = 60.0

#: Seconds that ending one request may take, how many are ended at once, and how long closing waits for them.
ABORT_S = 10.0
ABORTS_AT_ONCE = 16
LEAVE_S = 2.0

#: How often a request gets another name because its first still runs behind a connection that broke.
RENAMES = 3

#: Seconds between two looks at whether a server has nothing left to do.
DRAIN_EVERY_S = 0.1

_log = get_logger(__name__)


class _Load(msgspec.Struct):
    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    token_usage: float = 0.0


class _Loads(msgspec.Struct):
    loads: list[_Load]
    """One for each data-parallel rank."""


_LOADS = msgspec.json.Decoder(_Loads)
_OBJECT = msgspec.json.Decoder(dict[str, Any])


class SglangTransport(ServedTransport):
    """Carries prompts to an SGLang server."""

    # SGLang's /health samples a token, takes a second at least, and fails while the server is paused.
    health_path = None

    def __init__(
        self,
        client: HttpClient,
        info: ServerInfo,
        ways: Ways,
        *,
        weights_timeout_s: float = 600.0,
        keep: Keep = "in_place",
    ) -> None:
        super().__init__(client, info, weights_timeout_s=weights_timeout_s)
        self._ways = ways
        self._keep = keep
        self._nonce, self._numbers = secrets.token_hex(4), itertools.count()
        self._running: dict[str, str] = {}
        """What is in flight: the server's name of it, and its caller's."""
        self._ending = set[asyncio.Task[None]]()
        self._at_once = asyncio.Semaphore(ABORTS_AT_ONCE)
        self._drained: anyio.Event | None = None
        """There while new prompts are held back."""
        self._names = set[str]()
        """What the model is called there since its weights were changed."""
        self._frozen = False
        """Whether what runs there was kept by a pause: then its cache cannot be emptied."""

    async def generate(self, request: Request) -> Reply:
        """See `rollout.transport.Transport`."""
        while self._drained is not None:
            await self._drained.wait()
        if isinstance(request.prompt, TokenPrompt):
            check_prompt(request.prompt, self._ways)
        for left in range(RENAMES, -1, -1):
            rid = self._new_name(request)
            self._running[rid] = request.request_id
            try:
                return await self._complete(request, rid)
            except RequestRefused as error:
                if not left or "duplicate request id" not in str(error).lower():
                    raise
                self._end(rid)  # a connection broke under it; the server has not noticed yet
            except BaseException:
                self._end(rid)  # it may still run there
                raise
            finally:
                self._running.pop(rid, None)
        raise AssertionError("the last try raises or returns")

    async def _complete(self, request: Request, rid: str) -> Reply:
        if isinstance(request.prompt, MessagePrompt):
            answer = await self.client.post(
                CHAT, chat_body(request, self.info.model, rid, self._ways), headers=request.trace
            )
            return await self._read(read_chat, answer, request, self._ways)
        if self.info.token_route is None:
            raise ConfigError(f"{self.client.base_url} has no token-in route")
        answer = await self.client.post(GENERATE, generate_body(request, rid, self._ways), headers=request.trace)
        return await self._read(read_generate, answer, request, self._ways)

    def _new_name(self, request: Request) -> str:
        """One that no other has, and that no other begins with."""
        return f"{request.request_id}~{self._nonce}{next(self._numbers):08x}"

    def _end(self, rid: str) -> None:
        """Has the server end a request, beside whoever left it."""
        task = asyncio.get_running_loop().create_task(self._tell_end(rid))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _tell_end(self, rid: str) -> None:
        async with self._at_once:
            try:
                await self.client.tell(ABORT, {"rid": rid}, timeout_s=ABORT_S)
            except TransportError as error:
                _log.debug("abort_not_told", error=str(error))

    async def abort(self, request_ids: Sequence[str]) -> None:
        """See `rollout.transport.Transport`. Of the requests that went out from here."""
        names = frozenset(request_ids)
        for rid in [rid for rid, name in self._running.items() if name in names]:
            await self.client.tell(ABORT, {"rid": rid}, timeout_s=CONTROL_S, retries=CONTROL_RETRIES)

    async def aclose(self) -> None:
        """See `rollout.transport.Transport`. What was left is ended there first, as far as that takes no time."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=LEAVE_S)
        for task in list(self._ending):
            task.cancel()
        await super().aclose()

    async def load(self) -> ServerLoad:
        """See `rollout.transport.Transport`. Older servers say it in their metrics alone."""
        try:
            found: _Loads = decode(_LOADS, await self.client.get(LOADS), LOADS)
        except RequestRefused:
            return await super().load()
        return ServerLoad(
            running=sum(rank.num_running_reqs for rank in found.loads),
            waiting=sum(rank.num_waiting_reqs for rank in found.loads),
            cache_usage=max((rank.token_usage for rank in found.loads), default=None),
        )

    async def _must_be_the_same(self, cards: Sequence[ModelCard]) -> None:
        """New weights give the model their folder's name; a restart may have given it another model."""
        names = {card.id for card in cards}
        if self.info.model not in names and not names & self._names:
            server: dict[str, Any] = decode(_OBJECT, await self.client.get(SERVER_INFO), SERVER_INFO)
            cards = named_as_started(cards, server)
            if self.info.model in {card.id for card in cards}:
                self._names |= names
        elif names & self._names:
            cards = [msgspec.structs.replace(card, id=self.info.model) for card in cards if card.id in self._names]
        await super()._must_be_the_same(cards)

    async def first_tokens(self) -> Histogram | None:
        """See `rollout.transport.Transport`. None without --enable-metrics."""
        try:
            return await super().first_tokens()
        except RequestRefused:
            return None

    async def tokenize(self, prompt: MessagePrompt, *, add_generation_prompt: bool) -> list[int]:
        """See `rollout.transport.Transport`."""
        body = tokenize_body(prompt, self.info.model, add_generation_prompt=add_generation_prompt)
        return read_tokens(await self.client.post(TOKENIZE, body, timeout_s=TOKENIZE_S), TOKENIZE)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """See `rollout.transport.Transport`."""
        body = {"model": self.info.model, "tokens": list(ids), "skip_special_tokens": False}
        return read_text(await self.client.post(DETOKENIZE, body, timeout_s=TOKENIZE_S))

    async def pause(self, mode: InFlight = "keep") -> None:
        """See `rollout.transport.Transport`.

        `keep` is SGLang's in_place, or its retract where the transport was opened with the option `keep: "retract"`:
        then what runs is computed again under the new weights when it goes on.
        """
        if mode == "wait":
            await self._drain()
            mode = "keep"
        native = "abort" if mode == "abort" else self._keep
        await self._control(PAUSE, {"mode": native}, self._weights_timeout_s)
        self._frozen = native == "in_place"

    async def _drain(self) -> None:
        """Holds back new prompts until nothing runs on the server. Raises RequestTimeout, and then lets them go."""
        self._drained = self._drained or anyio.Event()
        try:
            with anyio.fail_after(self._weights_timeout_s):
                while self._running or await self._has_work():  # noqa: ASYNC110  # a server sets no event
                    await anyio.sleep(DRAIN_EVERY_S)
        except TimeoutError as error:
            self._let_go()
            why = f"requests still run after {self._weights_timeout_s:g} s"
            raise RequestTimeout(
                f"{self.client.base_url}: {why}, of others' perhaps; pause with keep or abort"
            ) from error
        except BaseException:
            self._let_go()
            raise

    async def _has_work(self) -> bool:
        load = await self.load()
        return bool(load.running or load.waiting)

    def _let_go(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.set()

    async def resume(self) -> None:
        """Goes on after `pause`."""
        await self._control(CONTINUE, {})
        self._frozen = False
        self._let_go()

    async def update_weights(self, version: str, path: str | None) -> None:
        """See `rollout.transport.Transport`. The cache is emptied, but for a pause that kept what runs.

        Unpaused, the server waits by itself until nothing runs. Without a path `abort_all_requests` must be refused: it
        is what the server does by default when it is told a version.
        """
        if path is None:
            await self._control(NAME_WEIGHTS, {"new_version": version, "abort_all_requests": False})
            return
        body = {"model_path": path, "weight_version": version, "flush_cache": not self._frozen}
        await self._control(LOAD_WEIGHTS, body, self._weights_timeout_s)

    async def _control(self, path: str, body: dict[str, Any], timeout_s: float = CONTROL_S) -> None:
        """Raises ConfigError where the server has no such route, and TransportError."""
        try:
            await self.client.tell(path, body, timeout_s=timeout_s, retries=CONTROL_RETRIES)
        except RequestRefused as error:
            if error.status not in (404, 405):
                raise
            raise ConfigError(f"{self.client.base_url} has no {path}: this SGLang is too old for it") from error


async def open(config: TransportConfig, client: HttpClient | None = None) -> SglangTransport:
    """Entry point `sglang`. See `rollout.transport.Open`. `client` takes the place of one of its own.

    Option: `keep`, in_place or retract: see `SglangTransport.pause`.
    """
    keep = config.options.get("keep", "in_place")
    if keep not in get_args(Keep):
        raise ConfigError(f"option keep is {' or '.join(get_args(Keep))}, not {keep!r}")
    async with opening(config, client) as client:
        info, ways = await Probe(config, client).run()
        tell_unreported(
            config,
            info,
            routed_experts="start SGLang with --enable-return-routed-experts, on a mixture of experts",
            sampling_mask="this SGLang is too old for it, or samples by a backend that keeps none",
        )
        return SglangTransport(client, info, ways, weights_timeout_s=config.weights_timeout_s, keep=keep)

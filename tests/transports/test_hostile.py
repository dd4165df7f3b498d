"""Whatever a server answers, what leaves a transport is an answer that passed the checks, or an error of ours.

Each dialect's own answers are recorded once, from the embedded model as a mixture of experts; then each is played again
with one of them spoiled: a value in it replaced, cut off in the middle, a web page, an error that came as a success.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import cache
from random import Random
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.errors import RolloutError
from rollout.request import MessagePrompt, Request, TokenPrompt
from rollout.tokens.images import as_logical
from rollout.tokens.verify import check_fields, check_reply
from rollout.transport import Transport, TransportConfig
from tests.transports.contract import HELLO, request_of
from tests.transports.mixture import Mixture
from transports import dynamo
from transports.http.client import HttpClient
from transports.sglang import transport as sglang
from transports.vllm import transport as vllm

#: What opens each, and what its settings force.
OPEN: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "vllm": ("vllm", vllm.open, {}),
    "sglang": ("sglang", sglang.open, {}),
    "dynamo": ("dynamo", dynamo.open, {}),
    "dynamo by generate": ("dynamo", dynamo.open, {"token_route": "/inference/v1/generate"}),
}

#: What stands where something else belongs.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 7, 2**31, 2**63, 2**70, -(2**70), 1.5, -0.5, 1e308, [], {}, "", "x", "error"),
    *("/" + "n" * 5000, "\0", "2026-01-01", "9" * 5000, [[]], [[1], ["x"]], [None], {"x": {"y": None}}, "AAAA"),
    *({"type": {"func": {}}, "function": {"name": "rollout_probe"}}, ["a", "b"], [-5], [[-5]], {"code": 404}),
)

#: Whole answers.
BODIES = (
    *(b"", b"null", b"{}", b"[]", b"7", b'"text"', b"\xff\xfe", b"[" * 3000, b'{"a":' * 3000),
    *(b"<html><title>Bad gateway</title></html>", b'{"error": {"message": "no", "code": 400}}', b'{"error": "busy"}'),
    *(
        b'{"object": "error", "message": "no"}',
        b"data: {}\n\ndata: [DONE]\n\n",
        b'[{"error": 1}]',
        b"vllm: 1e308\n" * 3,
    ),
)

Spoil = Callable[[int, bytes], tuple[int, bytes]]


class Recorder(httpx.AsyncBaseTransport):
    """Keeps what a server answered, by path."""

    def __init__(self, behind: httpx.AsyncBaseTransport) -> None:
        self._behind = behind
        self.answers = defaultdict[str, list[tuple[int, bytes]]](list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self._behind.handle_async_request(request)
        self.answers[request.url.path].append((answer.status_code, await answer.aread()))
        return httpx.Response(answer.status_code, content=answer.content, request=request)

    async def aclose(self) -> None:
        await self._behind.aclose()


class Spoiled(httpx.AsyncBaseTransport):
    """Answers as it was recorded, but for one path: from its `first` answer on."""

    def __init__(self, answers: dict[str, list[tuple[int, bytes]]], path: str, first: int, spoil: Spoil) -> None:
        self._answers, self._path, self._first, self._spoil = answers, path, first, spoil
        self._asked = defaultdict[str, int](int)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        known = self._answers.get(path, [(404, b"{}")])
        at, self._asked[path] = self._asked[path], self._asked[path] + 1
        status, body = known[min(at, len(known) - 1)]
        if path == self._path and at >= self._first:
            status, body = self._spoil(status, body)
        return httpx.Response(status, content=body, request=request)


def spoiled(chance: Random) -> Spoil:
    """One way of spoiling an answer."""
    way = chance.choice(("value", "value", "value", "value", "gone", "cut", "body", "status"))

    def spoil(status: int, body: bytes) -> tuple[int, bytes]:
        if way == "cut":
            return status, body[: chance.randrange(len(body) + 1)]
        if way == "body":
            return status, chance.choice(BODIES)
        if way == "status":
            return chance.choice((200, 204, 302, 400, 401, 403, 404, 429, 500, 503)), body
        try:
            value = json.loads(body)
        except ValueError:
            return status, body.replace(b"0", b"1e308").replace(b"le=", b"Le=" if way == "gone" else b"le=")
        places = list(_places(value))
        if places:
            holder, key = chance.choice(places)
            if way == "gone":
                del holder[key]
            else:
                holder[key] = chance.choice(VALUES)
        return status, json.dumps(value).encode()

    return spoil


def _places(value: Any) -> Any:
    """Every place of a value, by what holds it; of long lists the first few."""
    keys: Any = value if isinstance(value, dict) else range(min(3, len(value))) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


@cache
def recorded(name: str) -> dict[str, list[tuple[int, bytes]]]:
    """What a well server answers to all that is asked of it."""
    dialect, opened_by, config = OPEN[name]
    mixture = Mixture(dialect, masks=False)
    # Dynamo reports neither experts nor masks in its chat's answers.
    recorder = Recorder(httpx.ASGITransport(mixture.app) if dialect == "dynamo" else mixture)

    async def record() -> None:
        failed = await use(opened_by, recorder, config)
        assert not [one for one in failed if "generate" in one or "open" in one], failed
        await mixture.aclose()

    anyio.run(record)
    return dict(recorder.answers)


async def use(opened_by: Any, behind: httpx.AsyncBaseTransport, config: dict[str, Any]) -> list[str]:
    """Asks everything of a server; what failed, by name, with an error of ours. Raises any other."""
    failed: list[str] = []

    async def no_time(_: float) -> None:
        """A retry's pause."""

    async def tried(name: str, ask: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await ask()
        except RolloutError as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")

    client = HttpClient("http://x", transport=behind, retries=0, sleep=no_time)
    asked = TransportConfig(base_url="http://x", routed_experts=True, sampling_mask=True, **config)
    transport: Transport | None = await tried("open", lambda: opened_by(asked, client))
    if transport is None:
        return failed
    shown = TokenPrompt([1, 2, 1, 3, 1])
    fields: dict[str, Any] = {"routed_experts_from": 1, "sampling_mask": True, "sampling": {"top_k": 2}}
    prompts: list[MessagePrompt | TokenPrompt] = [HELLO, shown]
    for prompt in prompts:
        request = request_of(prompt, echo_prompt=True, **fields)
        await tried("generate", lambda request=request: _checked(transport, request))  # type: ignore[misc]
    await tried("tokenize", lambda: transport.tokenize(HELLO, add_generation_prompt=True))
    await tried("detokenize", lambda: transport.detokenize([1, 2]))
    await tried("check", transport.check)
    await tried("load", transport.load)
    await tried("first tokens", transport.first_tokens)
    await tried("pause", lambda: transport.pause("keep"))
    await tried("update", lambda: transport.update_weights("7", None))
    await tried("resume", transport.resume)
    await tried("abort", lambda: transport.abort(["one"]))
    await transport.aclose()
    return failed


async def _checked(transport: Transport, request: Request) -> None:
    """As a session does with what comes."""
    reply = check_reply(await transport.generate(request))
    check_fields(as_logical(reply, request.prompt, transport.info.image_token), request, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPEN)
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_a_server_answers_only_errors_of_ours_come_out(name: str, seed: int) -> None:
    """While it is opened, of a turn either way in, and of every question beside."""
    answers, chance = recorded(name), Random(seed)
    path = chance.choice(sorted(answers))
    first = chance.choice((0, 0, *range(len(answers[path]))))
    _, opened_by, config = OPEN[name]
    anyio.run(use, opened_by, Spoiled(answers, path, first, spoiled(chance)), config)

"""Dynamo's generate route with a real vLLM worker: alone, beside workers that do not serve it, and when it goes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import pytest

from rollout.errors import ConnectionFailed, ServerBusy
from rollout.request import MessagePrompt, Reply, TokenPrompt
from rollout.transport import TransportConfig
from tests.live.servers import Server, beside_a_mocker, dynamo_mocker, dynamo_vllm
from tests.live.test_run import ECHO, TOKENIZER, assert_token_exact, run
from tests.transports.contract import HELLO, long_request, request_of
from transports import auto, dynamo
from transports.embedded import MODEL_DIR
from transports.sglang.wire import GENERATE as STREAM
from transports.vllm.wire import GENERATE

pytestmark = pytest.mark.live

IDS = TokenPrompt([1, 2, 1])


@pytest.fixture(scope="module")
def mixed(logs: Path) -> Iterator[Server]:
    """A frontend with a vLLM worker, and with a mocker that does not serve the generate route."""
    with dynamo_vllm(MODEL_DIR, logs) as server:
        beside_a_mocker(server, MODEL_DIR)
        yield server


@contextlib.asynccontextmanager
async def opened(server: Server, route: str = GENERATE) -> AsyncIterator[dynamo.DynamoTransport]:
    transport = await dynamo.open(TransportConfig(base_url=server.url, token_route=route))
    try:
        yield transport
    finally:
        await transport.aclose()


async def asked(transport: dynamo.DynamoTransport, prompt: MessagePrompt | TokenPrompt) -> Reply:
    return await transport.generate(request_of(prompt))


async def until(ask: Callable[[], Awaitable[bool]], within_s: float) -> None:
    """Returns when a server of another process answers so."""
    with anyio.fail_after(within_s):
        while not await ask():  # noqa: ASYNC110  # what is asked is a server
            await anyio.sleep(0.5)


async def test_both_routes_sample_the_same(dynamo_engine: Server) -> None:
    """One prompt by `nvext` and by the generate route: the same ids, and logprobs to rounding."""
    replies = []
    for route in (dynamo.CHAT, GENERATE):
        async with opened(dynamo_engine, route) as transport:
            replies.append(await asked(transport, IDS))
    first, second = replies
    assert first.completion_ids == second.completion_ids
    assert first.logprobs == pytest.approx(second.logprobs, abs=1e-4)


def test_a_run_by_the_generate_route_is_token_exact(dynamo_engine: Server, tmp_path: Path) -> None:
    """Checked while it runs: every later turn extended; the route says nothing of the cache."""
    route = ["--token-route", GENERATE]
    result = run(*ECHO, "--base-url", dynamo_engine.url, *TOKENIZER, *route, cwd=tmp_path)
    assert result.pop("cached_tokens") == 0
    assert_token_exact({**result, "cached_tokens": math.inf})


async def test_a_fleet_that_serves_it_in_part_goes_on_when_that_part_goes(mixed: Server) -> None:
    """Ids go to the worker that takes them; when it dies by `nvext` to another, counted; and back again."""
    async with opened(mixed) as transport:

        async def served_by_both() -> bool:
            return (await asked(transport, HELLO)).without_logprobs

        # The mocker computes no logprobs: so it is seen to be there, and never to get a prompt of ids.
        await until(served_by_both, 60)
        for _ in range(16):
            assert not (await asked(transport, IDS)).without_logprobs
        assert not transport.detours

        mixed.kill(1)
        for _ in range(4):
            reply = await asked(transport, IDS)
            assert reply.completion_ids
            assert reply.without_logprobs
        assert transport.detours.total() == 4
        assert set(transport.detours) <= {"404", "500", "503"}

        mixed.respawn(1)

        async def is_back() -> bool:
            # By `nvext` it may have been sampled by either worker.
            detours = transport.detours.total()
            reply = await asked(transport, IDS)
            return transport.detours.total() == detours and not reply.without_logprobs

        await until(is_back, 300)
        for _ in range(4):
            assert await is_back()


@pytest.fixture(scope="module")
def streaming(logs: Path) -> Iterator[Server]:
    """A frontend with a mocker of SGLang, at its own pace."""
    worker = ["--engine-type", "sglang", "--sglang-generate"]
    with dynamo_mocker(MODEL_DIR, logs, speedup_ratio=1.0, extra_args=worker) as server:
        yield server


async def test_sglangs_route_is_told_apart(streaming: Server) -> None:
    """It is there where a worker serves it, and answers ids with logprobs, which a mocker does not do by `nvext`."""
    transport = await auto.open(TransportConfig(base_url=streaming.url, token_route=STREAM))
    assert transport.info.dialect == "dynamo"
    assert transport.info.token_routes == [dynamo.CHAT, STREAM]
    reply = await transport.generate(request_of(IDS))
    assert len(reply.completion_ids or ()) == len(reply.logprobs or ()) == 4
    assert not any(map(math.isnan, reply.logprobs or ()))
    await transport.aclose()


async def test_a_stream_that_is_left_ends(streaming: Server) -> None:
    """The frontend ends what it hears no more of; there is nothing to end it by name."""
    transport = await auto.open(TransportConfig(base_url=streaming.url, token_route=STREAM))

    async def running(count: int) -> bool:
        return (await transport.load()).running == count

    async with anyio.create_task_group() as group:
        group.start_soon(transport.generate, long_request())
        await until(lambda: running(1), 30)
        group.cancel_scope.cancel()
    await until(lambda: running(0), 30)
    await transport.aclose()


def test_a_run_by_sglangs_route_is_token_exact(streaming: Server, tmp_path: Path) -> None:
    """Checked while it runs; a mocker says nothing of the cache on this route."""
    route = ["--token-route", STREAM, "-s", "temperature=1"]
    result = run(*ECHO, "--base-url", streaming.url, *TOKENIZER, *route, cwd=tmp_path)
    assert (result["turns"], result["token_in_turns"], result["prefix_breaks"]) == (512, 448, 0)
    assert result["fallbacks"] == {"first_turn": 64}


async def test_a_worker_that_dies_in_a_stream_is_told(streaming: Server) -> None:
    """The frontend ends the stream with an error: the prompt may be asked again."""
    transport = await auto.open(TransportConfig(base_url=streaming.url, token_route=STREAM))
    ended: list[Exception] = []

    async def one() -> None:
        try:
            await transport.generate(long_request())
        except (ServerBusy, ConnectionFailed) as error:
            ended.append(error)

    async def running() -> bool:
        return (await transport.load()).running == 1

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        await until(running, 30)
        streaming.kill(1)
    assert len(ended) == 1
    await transport.aclose()

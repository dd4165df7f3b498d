"""A real SGLang: the contract, whole runs, its traps as they are, its death and its changes of weights."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from envs.echo import Echo
from rollout import EngineConfig
from rollout.chat.messages import user
from rollout.request import MessagePrompt, TokenPrompt
from rollout.servers.weights import InFlight
from rollout.store.folder import read_rollouts
from rollout.tokens.prefix import FallbackReason
from rollout.transport import Transport, TransportConfig
from tests.live.servers import Server, sglang_server
from tests.live.subject import Live
from tests.live.test_faults import Client, assert_sound, respawned
from tests.live.test_run import run
from tests.live.updates import updated_under_way
from tests.transports.contract import Subject, TransportContract, long_request, request_of, until
from transports import auto
from transports.embedded import MODEL_DIR
from transports.embedded.transport import open as open_embedded
from transports.sglang.transport import SglangTransport

pytestmark = [pytest.mark.live, pytest.mark.sglang]

AGENT = str(Path(__file__).with_name("agent.py")) + ":MixedAgent"

#: Guesses follow: the model is unsure.
PROMPT = MessagePrompt([user("Guess my number from 1 to 64. 7 guesses left.")])


@pytest.fixture(scope="module")
def sglang(logs: Path) -> Iterator[Server]:
    with sglang_server(MODEL_DIR, logs) as server:
        yield server


class TestSglang(TransportContract):
    @pytest.fixture
    def subject(self, sglang: Server) -> Subject:
        return Live(sglang)


@pytest.fixture
async def transport(sglang: Server) -> Any:
    found = await auto.open(TransportConfig(base_url=sglang.url))
    yield found
    await found.aclose()


async def has_running(transport: Transport, count: int) -> None:
    async def are_there() -> bool:
        load = await transport.load()
        return (load.running or 0) + (load.waiting or 0) == count

    await until(are_there)


async def test_it_is_told_as_it_is(transport: SglangTransport) -> None:
    """Told apart by `auto`, and every fact as the server was started."""
    info = transport.info
    assert (info.dialect, info.version, info.token_routes) == ("sglang", "0.5.23", ["/generate"])
    assert (info.max_model_len, info.vocab_size, info.logprobs_mode) == (4096, 2048, "processed_logprobs")
    assert info.keeps_stop_token is True
    assert info.can_tokenize
    assert info.reports_cached_tokens
    assert info.reports_weight_versions
    first = await transport.first_tokens()
    assert first is not None
    assert first.total > 0


async def test_its_logprobs_are_the_embedded_models(transport: SglangTransport) -> None:
    """The same folder by two engines: one answer to a greedy request, with the same logprobs to 1e-4."""
    embedded = await open_embedded(TransportConfig(options={"dialect": "sglang"}))
    ours, theirs = [await one.generate(request_of(PROMPT, max_tokens=12)) for one in (embedded, transport)]
    await embedded.aclose()
    assert ours.completion_ids == theirs.completion_ids
    assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


async def test_an_abort_ends_what_begins_as_it_is_told(sglang: Server, transport: SglangTransport) -> None:
    """The trap by the raw wire, and that our names do not fall into it: one of two like-named requests is ended."""
    ended: list[str] = []

    async def raw(rid: str, client: httpx.AsyncClient) -> None:
        params = {"max_new_tokens": 2000, "ignore_eos": True}
        body = {"input_ids": [1, 2, 1], "sampling_params": params, "rid": rid}
        answer = await client.post(f"{sglang.url}/generate", json=body, timeout=300)
        assert answer.json()["meta_info"]["finish_reason"]["type"] == "abort"
        ended.append(rid)

    async with httpx.AsyncClient() as client, anyio.create_task_group() as group:
        for rid in ("trap-1", "trap-12"):
            group.start_soon(raw, rid, client)
        await has_running(transport, 2)
        await client.post(f"{sglang.url}/abort_request", json={"rid": "trap-1"}, timeout=60)
    assert sorted(ended) == ["trap-1", "trap-12"]
    first, second = long_request(), long_request()
    async with anyio.create_task_group() as group:
        for request in (first, second):
            group.start_soon(transport.generate, request)
        await has_running(transport, 2)
        await transport.abort([first.request_id])
        await has_running(transport, 1)
        await transport.abort([second.request_id])


async def test_a_name_that_runs_is_refused_and_made_anew(transport: SglangTransport, monkeypatch: Any) -> None:
    """As after a connection that broke: what was left behind is ended, and the request is answered."""
    fixed = iter(["twice", "twice", "once"])
    monkeypatch.setattr(SglangTransport, "_new_name", lambda self, request: next(fixed))
    async with anyio.create_task_group() as group:
        group.start_soon(transport.generate, long_request())
        await has_running(transport, 1)
        reply = await transport.generate(request_of(TokenPrompt([1, 2, 1])))
        assert reply.completion_ids
        await has_running(transport, 0)


async def test_the_context_is_filled_to_its_end(transport: SglangTransport) -> None:
    """What is asked for beyond it is cut; the server's own limit, a little below, is told as a prompt too long."""
    reply = await transport.generate(
        request_of(TokenPrompt([1, 2] * 2040), max_tokens=3000, sampling={"ignore_eos": True})
    )
    assert 0 < len(reply.completion_ids or ()) <= 16
    assert reply.finish_reason == "length"


def test_every_shape_of_turn_is_token_exact(sglang: Server, tmp_path: Path) -> None:
    """Tools, reasoning, unicode, rewritten histories: no prefix breaks, and no fallback that was not provoked."""
    args = [AGENT, "-n", "12", "--max-tokens", "16", "-s", "temperature=1", "-s", "top_k=-1", "--base-url", sglang.url]
    result = run(*args, "--verify", "-o", str(tmp_path / "run"), cwd=tmp_path)
    rollouts = list(read_rollouts(tmp_path / "run"))
    reasons = sum((rollout.fallbacks for rollout in rollouts), Counter[FallbackReason]())
    print(f"\nSGLang: {result['turns']} turns, {result['token_in_turns']} token-in, {dict(reasons)}")
    assert (result["failures"], result["prefix_breaks"]) == (0, 0)
    assert reasons.pop(FallbackReason.FIRST_TURN) == 12
    assert set(reasons) <= {FallbackReason.HISTORY_REWRITTEN, FallbackReason.NO_MATCH}
    assert result["cached_tokens"] > 0


@pytest.mark.parametrize("in_flight", ["keep", "wait", "abort"])
async def test_weights_change_under_load(sglang: Server, in_flight: InFlight, other_weights: Path) -> None:
    """Two updates while rollouts run: all finish, every sampled token has a version, and versions never go back."""
    config = EngineConfig(
        base_url=sglang.url, max_tokens=24, concurrency=6, verify=True, sampling={"ignore_eos": True, "min_tokens": 20}
    )
    await updated_under_way(
        config, lambda: Echo(turns=3, chars=60), in_flight, [other_weights, MODEL_DIR], tasks=6, after_turns=4
    )


async def test_what_runs_is_computed_again_under_new_weights(sglang: Server, other_weights: Path) -> None:
    """The option `keep: "retract"`: one request across an update comes back whole, with a span for each version."""
    transport = await auto.open(TransportConfig(base_url=sglang.url, options={"keep": "retract"}))
    replies: list[Any] = []
    request = request_of(TokenPrompt([1, 2, 1]), max_tokens=400, sampling={"ignore_eos": True, "temperature": 0})

    async def one() -> None:
        replies.append(await transport.generate(request))

    await transport.update_weights("r1", None)
    async with anyio.create_task_group() as group:
        group.start_soon(one)
        await until(lambda: has_tokens(sglang, 20))
        await transport.pause("keep")
        await transport.update_weights("r2", str(other_weights))
        await transport.resume()
    await transport.update_weights("default", str(MODEL_DIR))
    await transport.aclose()
    spans = replies[0].weight_versions
    assert [span.version for span in spans] == ["r1", "r2"]
    assert (spans[0].start, spans[0].end, spans[1].end) == (0, spans[1].start, 400)


async def has_tokens(server: Server, count: int) -> bool:
    """Whether what runs there holds so many tokens."""
    async with httpx.AsyncClient() as client:
        (load,) = (await client.get(f"{server.url}/v1/loads", timeout=30)).json()["loads"]
    return bool(load["num_running_reqs"]) and load["num_used_tokens"] >= count


@pytest.fixture(scope="module")
def doomed(logs: Path) -> Iterator[Server]:
    """One to be killed."""
    with sglang_server(MODEL_DIR, logs) as server:
        yield server


def test_one_that_is_killed_and_restarted(doomed: Server, tmp_path: Path) -> None:
    """kill -9 with requests in flight: they wait, and go on where they were when the server is back."""
    args = ["guess_number", "-n", "6", "-r", "2", "--max-tokens", "16", "--verify", "-c", "6", "--base-url", doomed.url]
    client = Client(*args, folder=tmp_path / "run")
    client.wait_for(2)
    doomed.kill(0)
    thread = respawned(doomed, 0, _well, 400)
    result, _ = client.end()
    thread.join()
    rollouts = assert_sound(tmp_path / "run", members=12)
    assert all(rollout.ok for rollout in rollouts)
    assert result["servers"][0]["deaths"] == 1
    until_idle(doomed)


def _well(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def until_idle(server: Server, deadline_s: float = 60.0) -> None:
    """Nothing is left running there."""
    end = time.monotonic() + deadline_s
    while True:
        (load,) = httpx.get(f"{server.url}/v1/loads", timeout=10).json()["loads"]
        if not load["num_running_reqs"] + load["num_waiting_reqs"]:
            return
        assert time.monotonic() < end, load
        time.sleep(0.2)

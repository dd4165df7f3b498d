"""A real SGLang: the contract, whole runs, its traps as they are, its death and its changes of weights."""

from __future__ import annotations

import json
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
from rollout.errors import RequestRefused
from rollout.request import MessagePrompt, TokenPrompt
from rollout.schedule.concurrency import START
from rollout.servers.weights import InFlight
from rollout.store.folder import read_rollouts
from rollout.tokens.prefix import FallbackReason
from rollout.transport import Transport, TransportConfig
from tests.live.servers import Server, sglang_server
from tests.live.subject import Live
from tests.live.test_faults import Client, assert_sound, respawned
from tests.live.test_grpo import trained
from tests.live.test_probe import assert_exact, probe
from tests.live.test_run import command, run
from tests.live.updates import updated_under_way
from tests.transports.contract import Subject, TransportContract, long_request, request_of, until
from transports import auto
from transports.embedded import MODEL_DIR
from transports.embedded.transport import open as open_embedded
from transports.sglang.transport import SglangTransport

pytestmark = [pytest.mark.live, pytest.mark.sglang]

AGENT = str(Path(__file__).with_name("agent.py")) + ":MixedAgent"

#: What it runs at once; more wait in its queue.
AT_ONCE = 48

#: Guesses follow: the model is unsure.
PROMPT = MessagePrompt([user("Guess my number from 1 to 64. 7 guesses left.")])


@pytest.fixture(scope="module")
def sglang(logs: Path) -> Iterator[Server]:
    with sglang_server(MODEL_DIR, logs, extra_args=["--max-running-requests", str(AT_ONCE)]) as server:
        yield server


class TestSglang(TransportContract):
    @pytest.fixture
    def subject(self, sglang: Server) -> Subject:
        subject = Live(sglang)
        subject.reports_masks = True
        return subject


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


async def test_an_id_that_is_none_is_kept_from_it(transport: SglangTransport) -> None:
    """Its scheduler would die of it: it is refused here, and the server goes on."""
    for one in (2048, -1):
        with pytest.raises(RequestRefused, match="none of them"):
            await transport.generate(request_of(TokenPrompt([1, one])))
    assert (await transport.generate(request_of(TokenPrompt([1, 2047])))).completion_ids


@pytest.mark.parametrize("prompt", [PROMPT, TokenPrompt([1, 2, 1])])
async def test_sampling_that_it_refuses_is_told_as_it_says(transport: SglangTransport, prompt: Any) -> None:
    """A value that cannot be, by both ways in; and a name that it does not know, where it looks at names."""
    with pytest.raises(RequestRefused, match="temperature"):
        await transport.generate(request_of(prompt, sampling={"temperature": -1}))
    if isinstance(prompt, TokenPrompt):
        with pytest.raises(RequestRefused, match="no_such_key"):
            await transport.generate(request_of(prompt, sampling={"no_such_key": 1}))


@pytest.mark.parametrize("top_k", [None, 0, -1, 5])
async def test_no_limit_by_any_name(sglang: Server, transport: SglangTransport, top_k: int | None) -> None:
    """The model's own `top_k: 0` is refused by its chat route, left out or said: from here it is played, both ways."""
    body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 1}
    sampling: dict[str, Any] = {"temperature": 1.0} | ({} if top_k is None else {"top_k": top_k})
    async with httpx.AsyncClient() as client:
        raw = await client.post(f"{sglang.url}/v1/chat/completions", json=body | sampling, timeout=60)
    assert raw.status_code == (400 if top_k in (None, 0) else 200)
    for prompt in (PROMPT, TokenPrompt([1, 2, 1])):
        assert (await transport.generate(request_of(prompt, sampling=sampling))).completion_ids


async def test_a_connection_that_drops_is_ended_by_name(sglang: Server, transport: SglangTransport) -> None:
    """By the raw wire what was left still runs; what is left from here is told to end."""
    params = {"max_new_tokens": 3000, "ignore_eos": True}
    body = {"input_ids": [1, 2, 1], "sampling_params": params, "rid": "left-behind"}
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(f"{sglang.url}/generate", json=body, timeout=httpx.Timeout(30, read=2))
        load = await transport.load()
        await client.post(f"{sglang.url}/abort_request", json={"rid": "left-behind"}, timeout=60)
    assert load.running == 1
    await has_running(transport, 0)
    async with anyio.create_task_group() as group:
        group.start_soon(transport.generate, long_request())
        await has_running(transport, 1)
        group.cancel_scope.cancel()
    await has_running(transport, 0)


def test_a_probe_tells_it_in_depth(sglang: Server, tmp_path: Path) -> None:
    """`rollout probe`: dialect, routes, ids, logprobs, versions, and every shape token-exact, those with tools too."""
    found = probe(sglang, cwd=tmp_path)
    server = found["server"]
    assert (server["dialect"], server["token_routes"], server["ids_source"]) == ("sglang", ["/generate"], "choice")
    assert server["reports_prompt_ids"]
    assert server["reports_cached_tokens"]
    assert server["reports_weight_versions"]
    assert server["keeps_stop_token"] is True
    assert server["logprobs_mode"] == "processed_logprobs"
    assert server["tool_fields"] == {"function": {"description": None, "parameters": None}, "defer_loading": None}
    assert_exact(found)


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


def test_concurrency_follows_its_load(sglang: Server, tmp_path: Path) -> None:
    """`-c auto` goes above where it began, and stops near what the server runs at once: it has a queue from there."""
    size = ["-n", "60", "-r", "4", "-a", "turns=2", "--max-tokens", "8", "-c", "auto"]
    result = run("echo", *size, "--base-url", sglang.url, "--verify", cwd=tmp_path)
    assert (result["rollouts"], result["failures"], result["prefix_breaks"]) == (240, 0, 0)
    assert START < result["most_running"] <= 3 * AT_ONCE


def test_a_trainer_learns_from_it(sglang: Server, tmp_path: Path) -> None:
    """GRPO, a few steps: weights are pushed, new tokens carry their version, and both agree on every logprob."""
    steps = trained("sglang", sglang.url, tmp_path / "out", "--tasks-per-step", "9")
    assert max(step["disagreement"] for step in steps) < 1e-3
    assert all(step["samples_per_rollout"] == 1 for step in steps)
    assert not any(step["prefix_breaks"] for step in steps)
    model = httpx.get(f"{sglang.url}/model_info", timeout=30).json()
    assert model["weight_version"] == "3"


def test_a_bench_of_it(sglang: Server, tmp_path: Path) -> None:
    """`rollout bench` on it: token-in breaks nothing and samples each token once, message-in does not."""
    size = ["--turns", "4", "-c", "4", "--repeats", "1", "-o", str(tmp_path / "bench")]
    done = command("bench", "--base-url", sglang.url, *size, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tito, mito = json.loads((tmp_path / "bench" / "results.json").read_bytes())["runs"]
    assert (tito["mode"], tito["failed"], tito["prefix_breaks"], tito["never_sampled"]) == ("tito", 0, 0, 0)
    assert (mito["mode"], mito["failed"]) == ("mito", 0)
    assert mito["prefix_breaks"] > 0


def test_one_that_is_killed_and_restarted(sglang: Server, tmp_path: Path) -> None:
    """kill -9 with requests in flight: they wait, and go on where they were when the server is back. The last test."""
    args = ["guess_number", "-n", "6", "-r", "2", "--max-tokens", "16", "--verify", "-c", "6", "--base-url", sglang.url]
    client = Client(*args, folder=tmp_path / "run")
    client.wait_for(2)
    sglang.kill(0)
    thread = respawned(sglang, 0, _well, 400)
    result, _ = client.end()
    thread.join()
    rollouts = assert_sound(tmp_path / "run", members=12)
    assert all(rollout.ok for rollout in rollouts)
    assert result["servers"][0]["deaths"] == 1
    until_idle(sglang)


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

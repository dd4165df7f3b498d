"""Routed experts and sampling masks of a real server: SGLang, on a mixture of experts with random weights.

vLLM cannot show them without a GPU, but it knows the fields: docs/servers.md says what it answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import msgspec
import numpy as np
import pytest

from rollout.request import Reply, TokenPrompt
from rollout.servers.completion import joined, rest_of
from rollout.store.folder import read_rollouts
from rollout.tokens.samples import TrainingSample
from rollout.tokens.verify import check_fields
from rollout.transport import Transport
from tests.live.random_model import EXPERTS, LAYERS, TOP_K, write_random_mixture
from tests.live.servers import Server, sglang_server
from tests.live.subject import Live
from tests.live.test_run import run
from tests.transports.contract import TransportContract, request_of, until
from transports.vllm.wire import COMPLETIONS, GENERATE, completions_body, generate_body

pytestmark = pytest.mark.live

#: How many ids a token is drawn from at most.
KEPT = 20


@pytest.fixture(scope="module")
def mixture(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = write_random_mixture(tmp_path_factory.mktemp("mixture") / "m")
    with sglang_server(folder, logs, experts=True) as server:
        yield server


class Mixture(Live):
    """What it is asked for, it reports."""

    reports_experts = reports_masks = True


class Contract(TransportContract):
    __test__ = False


@pytest.mark.sglang
async def test_it_keeps_the_contract_of_both(mixture: Server) -> None:
    """Experts of the same ids are the same, whether they were sampled, sent again, or are in its cache."""
    await Contract().test_routed_experts_come_where_they_are_asked_for(Mixture(mixture))
    await Contract().test_sampling_masks_come_where_they_are_asked_for(Mixture(mixture))


@pytest.mark.sglang
async def test_a_completion_that_was_aborted_has_them_of_both_parts(mixture: Server) -> None:
    """The second part is asked from where the first ends; together they are those of the whole."""
    transport = await Mixture(mixture).open(routed_experts=True)
    sampling = {"temperature": 0, "ignore_eos": True}
    request = request_of(TokenPrompt([5, 6, 7]), max_tokens=2000, sampling=sampling, routed_experts_from=0)
    parts: list[Reply] = []

    async def first() -> None:
        parts.append(await transport.generate(request))

    async with anyio.create_task_group() as group:
        group.start_soon(first)
        await until(lambda: _runs(transport))
        await transport.abort([request.request_id])
    part = check_fields(parts[0], request, None)
    assert part.finish_reason == "abort"
    assert part.completion_ids
    rest = rest_of(request, [part])
    assert rest is not None
    assert rest.routed_experts_from == 3 + len(part.completion_ids) - 1
    rest = request_of(rest.prompt, max_tokens=4, sampling=sampling, routed_experts_from=rest.routed_experts_from)
    whole = joined([part, check_fields(await transport.generate(rest), rest, LAYERS * TOP_K)])
    assert whole.routed_experts is not None
    ids = TokenPrompt([5, 6, 7, *(whole.completion_ids or ())])
    again = await transport.generate(request_of(ids, max_tokens=1, routed_experts_from=0))
    assert again.routed_experts is not None
    assert again.routed_experts.part(0, len(ids.ids) - 1) == whole.routed_experts
    await transport.aclose()


async def _runs(transport: Transport) -> bool:
    load = await transport.load()
    return (load.running or 0) == 1


@pytest.mark.sglang
def test_a_run_keeps_them_of_every_token(mixture: Server, tmp_path: Path) -> None:
    """Whatever process plays it: all but each branch's last token have experts, each sampled one its mask."""
    asked = ["--routed-experts", "--sampling-mask", "--temperature", "1", "-s", f"top_k={KEPT}", "--max-tokens", "12"]
    result = run(
        *("guess_number", "-n", "3", "-r", "2", "--processes", "2", "--verify", "--max-turns", "4", *asked),
        *("--base-url", mixture.url, "-o", "run"),
        cwd=tmp_path,
    )
    assert (result["rollouts"], result["failures"]) == (6, 0)
    samples = [sample for rollout in read_rollouts(tmp_path / "run") for sample in rollout.samples()]
    assert len(samples) >= 6
    for sample in samples:
        check(sample)


def check(sample: TrainingSample) -> None:
    arrays, tokens = sample.to_numpy(), len(sample.token_ids)
    experts, turns = arrays["routed_experts"], arrays["turn_ids"]
    assert experts.shape == (tokens, LAYERS, TOP_K)
    assert ((experts[:-1] >= 0) & (experts[:-1] < EXPERTS)).all()
    assert (experts[:-1, :, 0] != experts[:-1, :, 1]).all(), "a token is sent to different experts"
    assert (experts[-1] == -1).all()
    ids, offsets = arrays["sampling_mask_ids"], arrays["sampling_mask_offsets"]
    counts = np.diff(offsets)
    assert (counts[turns < 0] == 0).all()
    assert ((counts[turns >= 0] >= 1) & (counts[turns >= 0] <= KEPT)).all()
    for at in np.flatnonzero(turns >= 0):
        assert sample.token_ids[at] in ids[offsets[at] : offsets[at + 1]]


async def test_vllm_knows_the_fields(vllm: Server) -> None:
    """Both stand in its answers, empty where it was not started for them; a start is taken, and held to the prompt."""
    request = request_of(TokenPrompt([5, 6, 7]), routed_experts_from=3, sampling_mask=True)
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(base_url=vllm.url, timeout=60, headers=headers) as client:
        for path, body in ((GENERATE, generate_body), (COMPLETIONS, completions_body)):
            choice = (await client.post(path, content=msgspec.json.encode(body(request, "tiny")))).json()["choices"][0]
            assert choice["routed_experts"] is None
            if path == GENERATE:
                assert choice["sampling_mask"] is None
            beyond = msgspec.structs.replace(request, routed_experts_from=4)
            refused = await client.post(path, content=msgspec.json.encode(body(beyond, "tiny")))
            assert refused.status_code == 400
            assert "routed_experts_prompt_start" in refused.text

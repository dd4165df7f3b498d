"""The example that trains does so against a real vLLM: versions advance, and both sides agree on every logprob."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.live.install import PROJECT, python_of
from tests.live.servers import Server, vllm_server

pytestmark = pytest.mark.live

EXAMPLE = [str(python_of("train")), "-m", "benchmarks.grpo.example"]


@pytest.fixture(scope="module")
def vllm(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """vLLM on the folder that the example writes for it."""
    folder = tmp_path_factory.mktemp("policy") / "served"
    subprocess.run([*EXAMPLE, "--write-model", str(folder)], cwd=PROJECT, check=True, timeout=120)
    with vllm_server(folder, logs) as server:
        yield server


@pytest.mark.parametrize("mode", ["tito", "mito"])
def test_a_few_steps_against_vllm(vllm: Server, mode: str, tmp_path: Path) -> None:
    """Three steps: weights are pushed, new tokens carry their version, and logprobs agree to 1e-2."""
    steps = trained("vllm", vllm.url, tmp_path / "out", "--tasks-per-step", "9", "--mode", mode)
    body = {"model": "tiny", "token_ids": [5, 6], "sampling_params": {"max_tokens": 1, "logprobs": 1}}
    answer = httpx.post(f"{vllm.url}/inference/v1/generate", json=body, timeout=60).json()
    assert answer["choices"][0]["weight_versions"][0]["version"] == "3"
    if mode == "tito":
        assert all(step["samples_per_rollout"] == 1 for step in steps)
        assert not any(step["prefix_breaks"] for step in steps)


def trained(server: str, url: str, folder: Path, *sizes: str) -> list[dict[str, Any]]:
    """Three steps of the example on a real server: what each reports. It has learned from what that server sampled."""
    command = [*EXAMPLE, "--server", server, "--base-url", url, "-o", str(folder), "--steps", "3", *sizes]
    done = subprocess.run(
        [*command, "--rollouts-per-task", "8"], cwd=PROJECT, capture_output=True, text=True, timeout=540, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    steps: list[dict[str, Any]] = [
        msgspec.json.decode(line) for line in (folder / "steps.jsonl").read_bytes().splitlines()
    ]
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert max(step["disagreement"] for step in steps) < 1e-2
    # Tokens that all carried the first version would be two updates old in the third step.
    assert steps[0]["staleness"] == 0
    assert steps[1]["staleness"] <= 1
    assert steps[2]["staleness"] < 2
    assert (folder / "reward.png").stat().st_size > 1000
    return steps

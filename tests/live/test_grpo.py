"""The example that trains does so against a real vLLM: versions advance, and both sides agree on every logprob."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import msgspec
import pytest

from tests.live.install import PROJECT, python_of
from tests.live.servers import Server

pytestmark = pytest.mark.live


@pytest.mark.parametrize("mode", ["tito", "mito"])
def test_a_few_steps_against_vllm(vllm: Server, mode: str, tmp_path: Path) -> None:
    """Three steps: weights are pushed, new tokens carry their version, and logprobs agree to 1e-2."""
    command = [
        str(python_of("train")),
        "-m",
        "rollout.examples.grpo",
        "--base-url",
        vllm.url,
        "-o",
        str(tmp_path / "out"),
    ]
    sizes = ["--steps", "3", "--tasks-per-step", "9", "--rollouts-per-task", "8", "--mode", mode]
    done = subprocess.run([*command, *sizes], cwd=PROJECT, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [msgspec.json.decode(line) for line in (tmp_path / "out" / "steps.jsonl").read_bytes().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert max(step["disagreement"] for step in steps) < 1e-2
    # The first step's tokens are the first weights'; later ones lag one update, or two where a turn spanned one.
    assert steps[0]["staleness"] == 0
    assert all(0 < step["staleness"] <= 2 for step in steps[1:])
    assert (tmp_path / "out" / "reward.png").stat().st_size > 1000
    body = {"model": "tiny", "token_ids": [5, 6], "sampling_params": {"max_tokens": 1, "logprobs": 1}}
    answer = httpx.post(f"{vllm.url}/inference/v1/generate", json=body, timeout=60).json()
    assert answer["choices"][0]["weight_versions"][0]["version"] == "3"
    if mode == "tito":
        assert all(step["samples_per_rollout"] == 1 for step in steps)
        assert not any(step["prefix_breaks"] for step in steps)

"""Trainers of one's own learn: the manual's, and the sharded one. They run where torch is (`make trainers`)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

from tests.docs_kit import PROJECT, blocks

pytestmark = [pytest.mark.live, pytest.mark.trainers]

ENVIRON = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}


def printed(command: list[str], folder: Path) -> str:
    """What a trainer prints."""
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=ENVIRON, capture_output=True, text=True, timeout=540, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    return done.stdout


def test_reinforce_in_thirty_lines_learns(tmp_path: Path) -> None:
    """The manual's script of that section, as it is printed: the last five steps' reward is far above the first's."""
    (block,) = (each for each in blocks(PROJECT / "docs" / "trainer.md") if each.section == "REINFORCE in thirty lines")
    assert len([line for line in block.text.splitlines()[1:] if line]) <= 30
    (tmp_path / "reinforce.py").write_text(block.text)
    rewards = [float(line.split()[1]) for line in printed(["reinforce.py"], tmp_path).splitlines()]
    assert len(rewards) == 15
    assert mean(rewards[-5:]) > mean(rewards[:5]) + 0.2


def test_a_sharded_update_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    """Two processes with a share of the rows each come to the weights that one process with all of them comes to."""
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "tests.live.trainers.sharded"]
    (found,) = re.findall(r"apart (\S+)  moved (\S+)", printed(command, tmp_path))
    apart, moved = map(float, found)
    assert moved > 1e-3
    assert apart < 1e-4 * moved


def test_a_sharded_policy_is_pushed_whole(tmp_path: Path) -> None:
    """Two processes train; what is sampled after each push has the logprobs that the shards give it."""
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "benchmarks.grpo.fsdp", "--steps", "3"]
    lines = re.findall(r"step (\d)  reward ([\d.]+)  disagreement (\S+)", printed(command, tmp_path))
    assert [int(step) for step, _, _ in lines] == [1, 2, 3]
    assert max(float(apart) for _, _, apart in lines) < 1e-3

"""The manual's page on Ray: a trainer that is part of a cluster embeds the engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs_kit import PROJECT, blocks
from tests.live.ray.cluster import Cluster
from tests.live.ray.runs import environ

pytestmark = [pytest.mark.live, pytest.mark.ray]

#: The section that is played here.
SECTION = "In a trainer on Ray"

#: Behind what the page prints: the cluster is as it was, and the job goes on in it.
AFTER = """
    assert ray.is_initialized()
    assert ray.get(ray.remote(num_cpus=0)(lambda: 7).remote()) == 7
    print("still there")
"""


def test_a_job_streams_groups(ray_cluster: Cluster, tmp_path: Path) -> None:
    """Its environment is the script's own; Ray is as it was when the engine has closed."""
    (block,) = [block for block in blocks(PROJECT / "docs" / "ray.md") if block.section == SECTION]
    script = tmp_path / "stream_groups.py"
    script.write_text(block.text + AFTER)
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        env={**environ(), "RAY_ADDRESS": ray_cluster.address},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    groups = re.findall(r"group (\d): 4 samples, (\d+) sampled tokens", done.stdout)
    assert [int(number) for number, _ in groups] == [0, 1, 2, 3], done.stdout
    assert all(int(tokens) > 0 for _, tokens in groups)
    assert done.stdout.endswith("still there\n")

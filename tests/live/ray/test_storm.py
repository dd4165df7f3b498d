"""512 rollouts by 4 actors, of which some lose their node in the middle: every task has one result, none two."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.ray.cluster import Cluster
from tests.live.ray.runs import assert_each_once, start, wait_for
from tests.live.servers import Server
from transports.embedded import MODEL_DIR

pytestmark = [pytest.mark.live, pytest.mark.ray]

TASKS, MEMBERS = 128, 4


@pytest.mark.parametrize(("server", "turns"), [("dynamo", 8), ("vllm", 2)])
def test_a_node_dies_and_one_is_added_in_the_middle(
    server: str, turns: int, ray_cluster: Cluster, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """With `--verify`: what the node's actors played is played again, all is token-exact, and nothing comes twice."""
    running: Server = request.getfixturevalue(server)
    folder = tmp_path / "run"
    process = start(
        *("run", "echo", "-n", str(TASKS), "-r", str(MEMBERS), "-a", f"turns={turns}", "-a", "chars=40"),
        *("--max-tokens", "2"),
        *("--base-url", running.url, "--tokenizer", str(MODEL_DIR), "--verify", "--rollout-retries", "2", "-c", "64"),
        *("--launch", "ray", "--ray-address", ray_cluster.address, "--processes", "4", "--ray-num-cpus", "0.5"),
        *("-o", str(folder)),
        cwd=tmp_path,
    )
    try:
        wait_for(folder, 64, process)
        ray_cluster.kill(1)
        ray_cluster.add()
        out, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    rollouts = assert_each_once(folder, TASKS, MEMBERS)
    assert [rollout["failure"] for rollout in rollouts if rollout.get("failure")] == []
    lost = [failure for rollout in rollouts for failure in rollout.get("earlier_failures", ())]
    assert {failure["kind"] for failure in lost} <= {"process"}
    assert "prefix breaks   0" in out

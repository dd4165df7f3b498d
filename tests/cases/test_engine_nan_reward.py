"""Cases engine/nan_reward and use/nan_reward: a number that is none leaves a folder that is read and goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollout.store.folder import read_rollouts
from tests.cases.folder_kit import command, env_file, lines

ENV = """
class E(Env):
    def __init__(self, what: str = "reward"): self.what = what
    def tasks(self, n, seed): return [{"n": i} for i in range(n)]
    async def reset(self, task): self.n = task["n"]; return [user("hi")]
    async def step(self, m):
        if self.n != 1: return Step(done=True, reward=1.0)
        if self.what == "reward": return Step(done=True, reward=math.nan)
        if self.what == "inf": return Step(done=True, reward=-math.inf)
        return Step(done=True, reward=1.0, metrics={"loss": math.nan})
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["reward", "inf", "metric"])
def test_a_number_that_is_none_is_the_environments_failure(what: str, tmp_path: Path) -> None:
    """The run ends with status 1, its folder is exported, and it goes on."""
    spec, out = env_file(tmp_path, ENV), tmp_path / "run"
    args = ["run", spec, "-a", f"what={what}", "--max-tokens", 4, "-o", out]
    command(*args, "-n", 3)
    assert command("export", out).exit_code == 0
    assert command(*args, "-n", 4, "--resume").exit_code in (0, 1)
    failed = {rollout.task_index: rollout.failure for rollout in read_rollouts(out) if rollout.failure}
    assert [failure.kind for failure in failed.values()] == ["environment"]
    assert list(failed) == [1]
    assert len(lines(out)) == 4

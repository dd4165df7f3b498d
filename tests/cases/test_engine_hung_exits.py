"""A call that hangs for ever: the command ends when it is done."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cases.commands import env_file, kinds, ran

HANGS = """
class E(Env):
    def __init__(self, how: str): self.how = how
    def tasks(self, n, seed): return [{"n": i} for i in range(n)]
    async def reset(self, task):
        self.n = task["n"]
        if self.n == 1 and self.how == "executor": asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)
        if self.n == 1 and self.how == "own thread": threading.Thread(target=time.sleep, args=(600,)).start()
        if self.n == 1 and self.how == "task": self.task = asyncio.create_task(stubborn())
        return [user("hi")]
    def step(self, m):
        if self.n == 1 and self.how == "step": time.sleep(600)
        return Step(done=True, reward=1.0)
async def stubborn():
    while True:
        try: await asyncio.sleep(600)
        except asyncio.CancelledError: pass
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "failed"),
    [
        ("step", 1),
        pytest.param("executor", 0, marks=pytest.mark.slow),
        pytest.param("own thread", 0, marks=pytest.mark.slow),
        pytest.param("task", 0, marks=pytest.mark.slow),
    ],
)
def test_the_command_ends_whatever_hangs(how: str, failed: int, tmp_path: Path) -> None:
    """In a step, in asyncio's executor, in a thread or a task of the environment: it ends, says so, and is right."""
    out = tmp_path / "r"
    spec = env_file(tmp_path, HANGS)
    sizes = ("-n", 3, "--max-tokens", 4, "--step-timeout", 1)
    done = ran("run", spec, "-a", f"how={how}", *sizes, "-o", out, "--json")
    ended = time.time()
    assert ended - (out / "summary.json").stat().st_mtime < 30
    assert done.returncode == failed, done.stderr
    assert done.stdout.count("\n") == 1
    assert "left behind" in done.stderr or "environment_left_tasks" in done.stderr
    assert len([kind for kind in kinds(out) if kind]) == failed

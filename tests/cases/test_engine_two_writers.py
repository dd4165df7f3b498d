"""Case engine/two_writers: a job is queued anew while the one before is still ending."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rollout.store.folder import read_rollouts
from tests.cases.folder_kit import command, env_file

ENV = """
import os

class E(Env):
    def tasks(self, n, seed): return [{"n": i} for i in range(n)]
    async def reset(self, task):
        self.n = task["n"]
        return [user("hi")]
    async def step(self, m):
        while self.n and not os.path.exists(os.environ["GO"]): await asyncio.sleep(0.01)
        return Step(done=True, reward=1.0)
"""


@pytest.mark.slow
def test_one_folder_has_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second gets status 2 and learns who writes; the folder is whole; after kill -9 the next one goes on."""
    go = tmp_path / "go"  # until it is there, the first has one rollout written and all others in play
    monkeypatch.setenv("GO", str(go))
    spec, out = env_file(tmp_path, ENV), tmp_path / "run"
    args = ["run", spec, "-n", "40", "-c", "2", "--max-tokens", "4", "--step-timeout", "60", "-o", str(out)]
    script = Path(sys.executable).with_name("rollout")
    first = subprocess.Popen([script, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = out / "rollouts.jsonl"
    while first.poll() is None and not (path.exists() and path.stat().st_size):
        time.sleep(0.01)
    second = command(*args, "--resume")
    exported = command("export", out)
    first.send_signal(signal.SIGKILL)
    first.wait()
    go.touch()
    assert second.exit_code == 2
    assert f"is being written by process {first.pid} on " in second.stderr
    assert exported.exit_code == 0
    assert command("run", "--resume", "-o", out, "-c", "40").exit_code == 0
    assert sorted(rollout.task_index for rollout in read_rollouts(out)) == list(range(40))

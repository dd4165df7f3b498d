"""A plain step that blocks for ever, without a limit of its own: the run is stopped, and the command ends."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.cases.commands import command, env_file, kinds

HANG = """
class E(Env):
    def reset(self, task): self.i = task["index"]; return [user("hi")]
    def step(self, m):
        if self.i == 1: open("hangs", "w").close(); time.sleep(100000)
        return Step(done=True, reward=1)
"""


@pytest.mark.slow
def test_a_run_that_hangs_is_stopped_and_ends(tmp_path: Path) -> None:
    """SIGTERM, the grace, the end: what hangs is cancelled, the rest is kept, and the command that goes on is said."""
    spec, out = env_file(tmp_path, HANG), tmp_path / "r"
    arguments = command("run", spec, "-n", 3, "--max-tokens", 4, "--stop-grace", 0.3, "-o", out)
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    while process.poll() is None and not (
        (tmp_path / "hangs").exists() and out.joinpath("rollouts.jsonl").read_bytes()
    ):
        pass
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert f"go on with: rollout run --resume -o {out}" in said
    assert "cancelled" in kinds(out)

"""Case engine/sigterm_group: SIGTERM to the process group, as Slurm, systemd and coreutils' timeout send it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROLLOUT = Path(sys.executable).with_name("rollout")

ENV = """
import asyncio
from rollout import Env, Step, user


class E(Env):
    turn = 0

    async def reset(self, task):
        return [user("hi")]

    async def step(self, message):
        print("turn", flush=True)
        await asyncio.sleep(0.2)
        self.turn += 1
        return Step(done=self.turn == 4, messages=[user("more")], reward=1.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_ends_the_run_resumably(number: signal.Signals, tmp_path: Path) -> None:
    """What ran is `cancelled`, none fails as `process`, and `--resume` plays what is missing."""
    (tmp_path / "env.py").write_text(ENV)
    command = [str(ROLLOUT), "run", "env.py:E", "-n", "8", "--processes", "2", "--max-tokens", "4", "-o", "run"]
    with subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        assert any(line == "turn\n" for line in process.stdout)
        os.killpg(process.pid, number)
        process.communicate(timeout=300)
    before = _kinds(tmp_path)
    assert set(before) == {"cancelled"}
    done = subprocess.run([*command, "--resume"], cwd=tmp_path, capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert _kinds(tmp_path).count(None) == 8


def _kinds(folder: Path) -> list[str | None]:
    lines = (folder / "run" / "rollouts.jsonl").read_text().splitlines()
    return [(json.loads(line).get("failure") or {}).get("kind") for line in lines]

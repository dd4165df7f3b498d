"""Case use/neighbour: a file's environment imports the file beside it, in every process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROLLOUT = Path(sys.executable).with_name("rollout")

ENV = """
import os
from helpers_of_mine import X
from rollout import Env, Step, user


class E(Env):
    async def reset(self, task):
        os.chdir("/")
        return [user("hi")]

    async def step(self, message):
        from late_helpers_of_mine import Y
        return Step(done=True, reward=X + Y)
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_imports_its_neighbours(processes: int, tmp_path: Path) -> None:
    """Also later, when user code has changed the working directory, which changes no path of ours."""
    folder = tmp_path / "neighbour"
    folder.mkdir()
    (folder / "env.py").write_text(ENV)
    (folder / "helpers_of_mine.py").write_text("X = 1\n")
    (folder / "late_helpers_of_mine.py").write_text("Y = 2\n")
    command = [str(ROLLOUT), "run", "neighbour/env.py:E", "-n", "3", "--max-tokens", "4", "-o", "run"]
    command += ["--processes", str(processes)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()
    assert [json.loads(line)["reward"] for line in lines] == [3.0] * 3
    assert (tmp_path / "run" / "summary.json").exists()

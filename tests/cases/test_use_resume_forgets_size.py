"""Case use/resume_forgets_size: `rollout run --resume -o DIR` alone plays exactly what is missing of that run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rollout.store.folder import read_rollouts
from tests.cases.folder_kit import command


@pytest.mark.slow
def test_a_stopped_run_is_completed_by_its_folder_alone(tmp_path: Path) -> None:
    """After control-C nothing but the folder is named, and all that was asked for is there, each once."""
    out = tmp_path / "run"
    args = ["run", "guess_number", "-n", "12", "-r", "4", "-c", "4", "--max-tokens", "8", "-o", str(out)]
    script = Path(sys.executable).with_name("rollout")
    process = subprocess.Popen([script, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = out / "rollouts.jsonl"
    while process.poll() is None and not (path.exists() and path.stat().st_size):
        time.sleep(0.01)  # a busy loop would take the core that the command needs
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 1
    for _ in range(2):  # the second finds nothing missing
        result = command("run", "--resume", "-o", out, "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["rollouts"] == 48
    members = [(rollout.task_index, rollout.member) for rollout in read_rollouts(out) if rollout.ok]
    assert sorted(members) == [(task, member) for task in range(12) for member in range(4)]

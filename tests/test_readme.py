"""The README's examples run as they are printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
CODE = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
ENV, TRAINER, READER = CODE[:3]


def command(*args: str, cwd: Path) -> str:
    """Standard output of a command, which must succeed."""
    done = subprocess.run(args, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def test_the_environment_example_plays(tmp_path: Path) -> None:
    """`rollout run double.py:Double` plays the environment that the README writes."""
    (tmp_path / "double.py").write_text(ENV)
    out = command(script("rollout"), "run", "double.py:Double", "-a", "limit=50", "-n", "4", "--json", cwd=tmp_path)
    assert '"rollouts":4,"failures":0' in out


@pytest.mark.slow
def test_the_trainer_example_and_the_reader_run(tmp_path: Path) -> None:
    """The ten lines print four groups of eight, and a run folder is read back to its samples."""
    (tmp_path / "train.py").write_text(TRAINER)
    out = command(sys.executable, "train.py", cwd=tmp_path)
    assert len(re.findall(r"<Group .* 8/8 finished>", out)) == 4
    command(script("rollout"), "run", "guess_number", "-n", "2", "-o", "runs/my-run", cwd=tmp_path)
    (tmp_path / "read.py").write_text(READER)
    assert command(sys.executable, "read.py", cwd=tmp_path).count("<TrainingSample") == 2

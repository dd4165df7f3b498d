"""Small faults of the command line, each one line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cases.commands import command, env_file, ran

SMALL = """
class E(Env):
    def __init__(self, how: str = ""): self.how = how
    def tasks(self, n, seed): return [{"n": i} for i in range(n)]
    async def reset(self, task):
        if self.how == "print": print("hello from the environment", flush=True)
        return [user("hi")]
    async def step(self, m): return Step(done=True, reward=1.0)
    async def close(self):
        if self.how == "close": raise RuntimeError("container %032x is gone" % random.getrandbits(128))
"""


def sized(folder: Path, how: str, *more: object) -> list[object]:
    spec = env_file(folder, SMALL)
    return ["run", spec, "-a", f"how={how}", "-n", 3, "--max-tokens", 2, "-o", folder / "r", *more]


@pytest.mark.slow
def test_json_is_the_only_line(tmp_path: Path) -> None:
    """An environment that prints does not break it."""
    assert ran(*sized(tmp_path, "print", "--json")).stdout.count("\n") == 1


@pytest.mark.slow
def test_each_kind_of_warning_is_said_once(tmp_path: Path) -> None:
    """Sixty that differ in a random name are one, and a count at the end."""
    done = ran(*sized(tmp_path, "close", "-n", 60))
    assert done.stderr.count("env_close_failed") == 2
    assert "59 more" in done.stderr
    assert (tmp_path / "r" / "events.log").read_text().count("env_close_failed") == 60


@pytest.mark.slow
@pytest.mark.parametrize(
    "streams", ["2>/dev/full", "2>&-", pytest.param("--processes 2 2>/dev/full", marks=pytest.mark.slow)]
)
def test_a_broken_standard_error_loses_nothing(streams: str, tmp_path: Path) -> None:
    """The run is played, its object printed, the status right, though the environment prints, too."""
    shell = ["bash", "-c", f'"$0" "$@" {streams}', *command(*sized(tmp_path, "print", "--json"))]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert done.stdout.startswith("{")


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["| head -c 1", ">&-"])
def test_a_standard_output_that_nobody_reads_loses_nothing(streams: str, tmp_path: Path) -> None:
    """The result is in the folder, the status right, and there is no traceback."""
    shell = ["bash", "-c", f'"$0" "$@" {streams}; exit ${{PIPESTATUS[0]}}', *command(*sized(tmp_path, ""))]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert "Error" not in done.stderr
    assert (tmp_path / "r" / "summary.json").exists()

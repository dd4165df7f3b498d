"""An environment that raises: whoever wrote it needs the file and the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cases.commands import env_file, ran

RAISES = """
def parse(text): return {"a": 1}["answer"]
class E(Env):
    def reset(self, task): return [user("hi")]
    def step(self, m): return Step(done=True, reward=parse(m.text))
"""


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], pytest.param(["--processes", "2"], marks=pytest.mark.slow)])
def test_the_first_traceback_is_on_the_terminal_and_all_are_in_the_log(more: list[str], tmp_path: Path) -> None:
    """Once for people, with the line that raised; in events.log for every rollout."""
    out = tmp_path / "r"
    done = ran("run", env_file(tmp_path, RAISES), "-n", 4, "-r", 2, "--max-tokens", 2, "-o", out, *more)
    assert done.returncode == 1
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert 'case_env.py", line 4, in parse' in done.stderr
    assert "environment_raised KeyError step: 7 more; all are in" in done.stderr
    events = [json.loads(line) for line in (out / "events.log").read_text().splitlines()]
    raised = [event for event in events if event["event"] == "environment_raised"]
    assert len(raised) == 8
    assert all("in parse" in event["exception"] for event in raised)

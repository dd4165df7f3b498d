"""`seams/user_env`: the public API passes a user's strict type checker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.public.test_public import mypy

CODE = """from rollout import Env, Step, user
class Mine(Env):
    def __init__(self) -> None:
        self.tools = [{"type": "function"}]
    def reset(self, task: dict[str, int]) -> list[object]:
        return [user(str(task["n"]))]
    def step(self, message: object) -> Step:
        return Step(done=True)
"""


@pytest.mark.slow
def test_a_users_environment_is_accepted(tmp_path: Path) -> None:
    """Tools of an object, a task as narrow as it is, messages as any objects."""
    file = tmp_path / "user_env.py"
    file.write_text(CODE, "utf-8")
    assert mypy(file) == []

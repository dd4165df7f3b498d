"""Case engine/surrogate: a lone surrogate in an environment's message, and in an exception's text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cases.commands import env_file, kinds, ran

ENV = r"""
class E(Env):
    def __init__(self, where: str = "step"): self.where = where
    def tasks(self, n, seed): return [{"n": i} for i in range(n)]
    async def reset(self, task): self.n = task["n"]; return [user("hi")]
    async def step(self, m):
        if self.n == 2 and self.where == "step":
            return Step(done=True, messages=[user(b"caf\xe9".decode("utf-8", "surrogateescape"))])
        if self.n == 2: raise FileNotFoundError(os.fsdecode(b"caf\xe9.txt"))
        return Step(done=True, reward=1.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("where", "failed"), [("step", []), ("error", ["environment"])])
def test_a_text_that_cannot_be_encoded_ends_no_run(where: str, failed: list[str], tmp_path: Path) -> None:
    """All rollouts are kept and the summary is printed; at most the rollout that it came from fails."""
    out = tmp_path / "run"
    done = ran("run", env_file(tmp_path, ENV), "-a", f"where={where}", "-n", 12, "--max-tokens", 4, "-o", out, "--json")
    assert json.loads(done.stdout)["rollouts"] == 12, done.stderr
    assert [kind for kind in kinds(out) if kind] == failed
    assert len(kinds(out)) == 12

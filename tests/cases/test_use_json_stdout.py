"""`--json`: one object on standard output, whatever the environment prints, in whichever way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cases.commands import env_file, ran

PRINTS = """
atexit.register(print, "at exit")
print("at import")
class E(Env):
    def __init__(self): print("init")
    def tasks(self, n, seed): print("tasks"); return [{"n": i} for i in range(n)]
    def reset(self, task):
        print("DEBUG: reset"); os.write(1, b"by descriptor\\n"); subprocess.run(["echo", "by a child"])
        logging.warning("logged")
        threading.Thread(target=lambda: [print("late") or time.sleep(0.01) for _ in range(500)], daemon=True).start()
        return [user("hi")]
    def step(self, m): return Step(done=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], pytest.param(["--processes", "2"], marks=pytest.mark.slow)])
def test_nothing_else_is_on_standard_output(more: list[str], tmp_path: Path) -> None:
    """What is printed is on standard error, also by processes, children, hooks and late threads."""
    spec = env_file(tmp_path, PRINTS)
    done = ran("run", spec, "-n", 2, "-r", 1, "--max-tokens", 4, "--json", "-o", tmp_path / "r", *more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["rollouts"] == 2
    for said in ("at import", "DEBUG: reset", "by descriptor", "by a child", "at exit"):
        assert said in done.stderr

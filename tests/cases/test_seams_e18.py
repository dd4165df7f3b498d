"""`seams/e18`: nothing is printed in library use, whatever happens to the rollouts."""

from __future__ import annotations

import subprocess
import sys

#: An environment that raises, tasks that leave something behind, a server that fails, and no tokenizer.
CODE = """
import anyio
from rollout import Engine, EngineConfig, Env, Step, user
from envs.echo import Echo
from transports.scripted import Fault, ScriptedTransport, reply
from rollout.errors import ServerBusy
class Raising(Env):
    def reset(self, task): return [user("x")]
    def step(self, message): raise ValueError("mine")
    def close(self): raise OSError("late")
async def main():
    transport = ScriptedTransport([reply("x"), reply("x"), Fault(ServerBusy("full"))])
    async with Engine(EngineConfig(concurrency=1), lambda: Echo(turns=1), transport=transport) as engine:
        for env in (None, Raising, None):
            async for group in engine.stream([{"n": 1, "text": "x"}], env=env): pass
anyio.run(main)
"""


def test_a_library_prints_nothing() -> None:
    """Neither stream has a word: a program that wants one attaches a handler to the logger `rollout`."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

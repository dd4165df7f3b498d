"""Case engine/thread_interrupt: control-C in a trainer that uses EngineThread."""

from __future__ import annotations

import signal
import subprocess
import sys

SCRIPT = """
import os, signal, threading
from rollout import EngineConfig, EngineThread, Env, Step, user
from transports.scripted import ScriptedTransport, Stalled, reply

class Short(Env):
    async def reset(self, task):
        return [user("hello")]
    async def step(self, message):
        return Step(done=True, reward=1.0)

transport = ScriptedTransport([reply("x"), reply("x"), Stalled(), Stalled()])
ended = 0

async def said(rollout):
    global ended
    ended += 1
    if ended == 2:
        await transport.wait_for(4)
        print("begun", flush=True)

config = EngineConfig(transport="scripted", concurrency=4)
taken, raised, running = 0, None, None
try:
    with EngineThread(config, Short, transport=transport) as running:
        for group in running.stream([{"n": 0}], rollouts_per_task=4, on_rollout=said):
            taken += len(group.finished)
except BaseException as error:
    raised = error
print(type(raised).__name__, raised)
print(taken, sum(len(group.finished) for group in running.untaken), running.stats().finished, transport.cancelled)
print([thread.name for thread in threading.enumerate() if thread.name == "rollout-engine"])
"""


ASYNCIO = (
    SCRIPT[: SCRIPT.index("config =")]
    + """
import asyncio
from rollout import Engine
engine = Engine(EngineConfig(transport="scripted", concurrency=4), Short, transport=transport)

async def train():
    async with engine:
        async for group in engine.stream([{"n": 0}], rollouts_per_task=4, on_rollout=said):
            raise AssertionError

raised = None
try:
    asyncio.run(train())
except BaseException as error:
    raised = error
print(type(raised).__name__)
print(0, sum(len(group.finished) for group in engine.untaken), engine.stats().finished, transport.cancelled)
print([])
"""
)


def interrupted(script: str) -> list[str]:
    """The last lines of a trainer that gets control-C when two of its rollouts have ended."""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "begun\n":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        return process.stdout.read().splitlines()[-3:]


def test_control_c_is_a_keyboard_interrupt_and_loses_nothing() -> None:
    """What had finished is taken or in `untaken`, the requests are closed, and the engine's thread has ended."""
    raised, counts, threads = interrupted(SCRIPT)
    assert raised.strip() == "KeyboardInterrupt"
    assert counts == "0 2 2 2"  # taken, untaken, finished, requests that were closed
    assert threads == "[]"


def test_control_c_in_an_asyncio_trainer() -> None:
    """As in a thread: a KeyboardInterrupt, closed requests, and nothing lost."""
    raised, counts, _ = interrupted(ASYNCIO)
    assert raised.strip() == "KeyboardInterrupt"
    assert counts == "0 2 2 2"

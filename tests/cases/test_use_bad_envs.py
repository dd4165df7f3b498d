"""Cases use/bad_envs and use/raw_tracebacks: each mistake of an environment's author is one line that names it."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rollout import Engine, EngineConfig, Env, Step, user
from rollout.records import FailureKind
from transports.scripted import ScriptedTransport, reply

ROLLOUT = Path(sys.executable).with_name("rollout")


class Good(Env):
    """What the others are made from."""

    def reset(self, task: Any) -> Any:
        return [user("hi")]

    def step(self, message: Any) -> Any:
        return Step(done=True)


def made(name: str, reset: Any = None, step: Any = None, **attributes: Any) -> type[Env]:
    body = dict(attributes)
    for key, answer in (("reset", reset), ("step", step)):
        if answer is not None:
            body[key] = partial(answer)
    return type(name, (Good,), body)


def exits(given: Any) -> Any:
    raise SystemExit(3)


BAD = {
    "ResetStr": (made("ResetStr", reset=lambda task: "hello"), "reset must give a list of messages, not str"),
    "ResetDict": (made("ResetDict", reset=lambda task: {"role": "user"}), "a list of messages, not dict"),
    "ResetNothing": (made("ResetNothing", reset=lambda task: []), "reset gave no message"),
    "StepTuple": (made("StepTuple", step=lambda m: ([user("x")], 1.0, True)), "must return a Step, not tuple"),
    "StepNone": (made("StepNone", step=lambda m: None), "must return a Step, not NoneType"),
    "StepForgetDone": (made("StepForgetDone", step=lambda m: Step(reward=1.0)), "gives the model nothing to answer"),
    "StepRaises": (made("StepRaises", step=lambda m: dict[str, Any]()["answer"]), "step raised KeyError: 'answer'"),
    "RewardStr": (made("RewardStr", step=lambda m: Step(done=True, reward="1")), "str where a number"),  # type: ignore[arg-type]
    "RewardNan": (made("RewardNan", step=lambda m: Step(done=True, reward=float("nan"))), "nan where a finite"),
    "MetricsStr": (made("MetricsStr", step=lambda m: Step(done=True, metrics={"why": "good"})), "metric 'why'"),  # type: ignore[dict-item]
    "MessagesStr": (made("MessagesStr", step=lambda m: Step(messages=["next"])), "message that cannot be read"),
    "MessagesOne": (made("MessagesOne", step=lambda m: Step(messages=user("next"))), "not Message"),  # type: ignore[arg-type]
    "Exits": (made("Exits", reset=exits), "reset raised SystemExit: 3"),
    "TaskMissing": (made("TaskMissing", reset=lambda task: [user(task["question"])]), "KeyError: 'question'"),
    "NoReset": (type("NoReset", (Env,), {}), "reset raised NotImplementedError: NoReset has no reset"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_mistake_is_its_rollouts_failure_and_named(name: str) -> None:
    """Of kind `environment`, whatever it is."""
    env, said = BAD[name]
    async with Engine(EngineConfig(), env, transport=ScriptedTransport([reply("x")] * 2)) as engine:
        (group,) = [group async for group in engine.stream([{"n": 1}])]
    (rollout,) = group.rollouts
    assert rollout.failure is not None
    assert rollout.failure.kind is FailureKind.ENVIRONMENT
    assert said in rollout.failure.message


FILE = """
import sys
from rollout import Env, Step, user


class FewTasks(Env):
    def reset(self, task):
        return [user("hi")]

    def step(self, message):
        return Step(done=True)


class TasksNone(FewTasks):
    def tasks(self, n, seed):
        pass


class TasksRaise(FewTasks):
    def tasks(self, n, seed):
        raise FileNotFoundError("data/train.jsonl")


class InitRaises(FewTasks):
    def __init__(self):
        raise RuntimeError("no docker")


class InitExits(FewTasks):
    def __init__(self):
        sys.exit("no GPU")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("bad.py:TasksNone", ["TasksNone", "None"]),
        ("bad.py:TasksRaise", ["TasksRaise", "FileNotFoundError: data/train.jsonl", "bad.py"]),
        ("bad.py:InitRaises", ["InitRaises", "RuntimeError: no docker", "bad.py"]),
        ("bad.py:InitExits", ["InitExits", "SystemExit: no GPU", "bad.py"]),
        ("exits.py:E", ["exits.py", "SystemExit: 3", "line 1"]),
        ("absent.py:E", ["there is no file", "absent.py"]),
    ],
)
def test_what_is_wrong_before_anything_is_played_is_one_line(spec: str, said: list[str], tmp_path: Path) -> None:
    """Status 2, with the class, what it raised, and the file and line."""
    (tmp_path / "bad.py").write_text(FILE)
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    done = subprocess.run(
        [str(ROLLOUT), "run", spec, "-n", "2", "-o", "run"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert all(part in line for part in said), line

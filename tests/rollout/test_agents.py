"""What holds for an environment's rollouts holds for an agent's: retries, staleness, groups, processes, resume."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from rollout import Agent, Group, Model, Outcome, Task, user
from rollout.errors import ConfigError, ServerBusy
from rollout.records import FailureKind
from rollout.store.folder import read_rollouts
from tests.docs_kit import ROLLOUT
from tests.rollout.test_engine import collect, engine
from transports.scripted import Fault, Held, reply

AGENT = '''
import asyncio, os

from rollout import Agent, Model, Outcome, Task, user


class Asks(Agent):
    """Two turns, and a sub-agent's."""

    def __init__(self, dies: str = "") -> None:
        self.dies = dies

    async def run(self, task: Task, model: Model) -> Outcome:
        asked = [user(f"task {task['index']}")]
        first, _ = await asyncio.gather(model.chat(asked), model.agent("sub").chat([user("sub")]))
        if self.dies and not os.path.exists(self.dies):
            open(self.dies, "w").close()
            os._exit(3)
        await model.chat([*asked, first.message, user("more")])
        return Outcome(reward=1.0, rewards={"sub": 0.5})
'''


class Asks(Agent):
    """Two turns."""

    async def run(self, task: Task, model: Model) -> Outcome:
        first = await model.chat([user("hello")])
        await model.chat([user("hello"), first.message, user("more")])
        return Outcome(reward=0.5)


async def test_groups_and_their_rewards() -> None:
    """A stream's group reward decides over the outcomes', and they are kept under their own name."""

    def reward(group: Group) -> Sequence[float]:
        return [float(rollout.member) for rollout in group.finished]

    running, _ = engine(plays=Asks, concurrency=3)
    async with running:
        groups = await collect(running, 3, rollouts_per_task=2, agent=Asks, group_reward=reward)
        with pytest.raises(ConfigError, match="not both"):
            await running.submit({}, env=Asks, agent=Asks)
    assert [group.rewards for group in groups] == [[0.0, 1.0]] * 3
    assert all(rollout.score == 0.5 for group in groups for rollout in group.rollouts)
    assert running.stats().token_in_turns == 6


async def test_an_attempt_that_a_server_spoilt_is_made_again() -> None:
    """`rollout_retries`: what failed earlier is kept."""
    running, _ = engine(Fault(ServerBusy("full")), *[reply("x")] * 9, plays=Asks, concurrency=1, rollout_retries=1)
    async with running:
        (group,) = await collect(running, 1)
    (rollout,) = group.rollouts
    assert rollout.ok
    assert [failure.kind for failure in rollout.earlier_failures] == [FailureKind.TRANSPORT]


async def test_an_agent_that_lived_through_too_many_updates_is_stale() -> None:
    """It is told at its next turn, and its tokens carry the weights that sampled them."""
    held = Held(reply("x"))
    running, transport = engine(held, *[reply("x")] * 9, plays=Asks, weights=True, concurrency=1, max_staleness=0)
    groups: list[Group] = []
    async with running, anyio.create_task_group() as playing:

        async def consume() -> None:
            groups.extend(await collect(running, 1))

        playing.start_soon(consume)
        await transport.wait_for(1)
        await running.update_weights("7")
        held.release()
    (rollout,) = groups[0].rollouts
    assert rollout.failure is not None
    assert rollout.failure.kind is FailureKind.STALE
    assert len(rollout.turns) == 1


PROGRAM = """
import sys
from openai import OpenAI

client = OpenAI()
said = [{"role": "user", "content": sys.argv[1]}]
for _ in range(3):
    answer = client.chat.completions.create(model="any", messages=said, max_tokens=4).choices[0].message
    said += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": "more"}]
first = client.responses.create(model="any", input="hi", max_output_tokens=4)
client.responses.create(model="any", input="again", previous_response_id=first.id, max_output_tokens=4)
print("asked")
"""


@pytest.mark.slow
def test_a_program_with_a_client_of_its_own_is_played_token_in(tmp_path: Path) -> None:
    """By name from the command line: from its second turn on no text is tokenized again, and nothing is left behind."""
    (tmp_path / "program.py").write_text(PROGRAM, "utf-8")
    (tmp_path / "tasks.jsonl").write_text('{"question": "a \\"b\\""}\n{"question": "$c"}\n', "utf-8")
    command = f"{sys.executable} {tmp_path / 'program.py'} {{task[question]}}"
    options = ("--tasks", "tasks.jsonl", "-r", "2", "--verify", "-o", "run")
    result = run("command", "-a", f"command={command}", *options, folder=tmp_path)
    assert (result["rollouts"], result["failures"], result["reward_mean"]) == (4, 0, 1.0)
    assert (result["turns"], result["token_in_turns"], result["fallbacks"]) == (20, 12, {"first_turn": 8})
    rollouts = list(read_rollouts(tmp_path / "run"))
    assert {rollout.notes["output"] for rollout in rollouts} == {"asked\n"}
    assert {rollout.messages[0].text for rollout in rollouts} == {"hi"}
    assert b"environment_left_tasks" not in (tmp_path / "run" / "events.log").read_bytes()


def run(*arguments: str, folder: Path, status: int = 0) -> dict[str, Any]:
    """The run's `--json`."""
    command = [ROLLOUT, "run", *arguments, "--json", "--max-tokens", "4"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == status, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_processes_play_agents_and_one_that_dies_costs_its_rollouts(tmp_path: Path) -> None:
    """They are played again by policy, as an environment's are."""
    (tmp_path / "asks.py").write_text(AGENT, "utf-8")
    options = ("--processes", "2", "-n", "4", "-r", "2", "--rollout-retries", "2", "-o", "run", "--verify")
    result = run("asks.py:Asks", "-a", f"dies={tmp_path / 'died'}", *options, folder=tmp_path)
    assert (result["rollouts"], result["failures"], result["process_deaths"]) == (8, 0, 1)
    assert result["agents"] == {"sub": {"turns": 8, "reward_mean": 0.5}}
    rollouts = list(read_rollouts(tmp_path / "run"))
    assert all({sample.agent: sample.reward for sample in each.samples()} == {"": 1.0, "sub": 0.5} for each in rollouts)


@pytest.mark.slow
def test_a_run_of_agents_is_resumed(tmp_path: Path) -> None:
    """What is missing is played, and nothing twice."""
    (tmp_path / "asks.py").write_text(AGENT, "utf-8")
    run("asks.py:Asks", "-n", "3", "-o", "run", folder=tmp_path)
    lines = (tmp_path / "run" / "rollouts.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "rollouts.jsonl").write_bytes(b"".join(lines[:1]))
    result = run("--resume", "-o", "run", folder=tmp_path)
    assert (result["rollouts"], result["failures"]) == (3, 0)
    assert sorted(rollout.task_index for rollout in read_rollouts(tmp_path / "run")) == [0, 1, 2]

"""The recipes of docs/agents.md, as a person plays them: its scripts and its command, on tasks of our own."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from rollout.store.export import samples_of_run
from rollout.store.folder import read_rollouts
from rollout.tokens.prefix import FallbackReason
from tests.docs_kit import PROJECT, blocks
from tests.live.install import program_of, python_of
from tests.live.steered import STEPS

PAGE = PROJECT / "docs" / "agents.md"

#: More than the longest form has characters: no turn is cut off.
MAX_TOKENS = 600

#: Seconds for one run.
_LIMIT_S = 400


class Script(msgspec.Struct, frozen=True):
    """What the model of one task does: the steps of its own conversation."""

    steps: str

    @property
    def task(self) -> dict[str, str]:
        return {"question": f"script={self.steps}; Say hello."}

    @property
    def helpers(self) -> int:
        """Conversations that it starts."""
        return sum("script=" in "".join(STEPS[step][1].values()) for step in self._calls)

    @property
    def turns(self) -> int:
        """Those of its own, and the three of each helper."""
        return len(self.steps.split(",")) + 3 * self.helpers

    @property
    def _calls(self) -> list[str]:
        return [step for step in re.split(r"[,+:]", self.steps) if step in STEPS]


def environment() -> dict[str, str]:
    """Ours, in which the agents' programs are found, and `python` is that of the agents."""
    ours = [python_of("agents").parent, program_of("claude").parent, Path(sys.executable).parent]
    return {**os.environ, "PATH": os.pathsep.join([*map(str, ours), os.environ["PATH"]]), "COLUMNS": "120"}


def write_scripts(folder: Path) -> None:
    """The page's files."""
    for block in blocks(PAGE):
        if block.file is not None:
            (folder / block.file).write_text(block.text, "utf-8")


def command_of(section: str, which: int = 0) -> str:
    """A section's command, as it is printed; one with several has them in order."""
    found = [block.text for block in blocks(PAGE) if block.section == section and "rollout run" in block.text]
    return found[which]


def program_of_recipe(section: str, folder: Path, which: int = 0) -> list[str]:
    """What a section's command starts for each task, with its fields: `{task[question]}` and the like."""
    last = 'rollout() { printf %s "${@: -1}"; }\n'
    line = ["bash", "-euc", last + command_of(section, which)]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True)
    return shlex.split(done.stdout.removeprefix("command="))


def play(
    section: str, url: str, scripts: Sequence[Script], folder: Path, *, members: int, which: int = 0, more: str = ""
) -> Path:
    """Plays a section's command against a server: its run folder. What it printed is shown with the test."""
    write_scripts(folder)
    tasks = "".join(json.dumps(script.task) + "\n" for script in scripts)
    (folder / "tasks.jsonl").write_text(tasks)
    small = f"-n {len(scripts)} -r {members} --max-tokens {MAX_TOKENS} --verify -o run -a timeout_s=300"
    line = f"{command_of(section, which).replace('http://gpu-7:8000', url).rstrip()} {small} {more}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    print(section, done.stdout, sep="\n\n")
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return folder / "run"


def assert_token_exact(run: Path, scripts: Sequence[Script], members: int, worth: Mapping[str, float]) -> None:
    """Of a run: as `assert_each_is_exact` says, and all were played."""
    ids = {rollout.id: scripts[rollout.task_index] for rollout in read_rollouts(run)}
    assert len(ids) == len(scripts) * members
    assert_each_is_exact(run, ids, worth)


def assert_each_is_exact(run: Path, scripts: Mapping[str, Script], worth: Mapping[str, float] = {}) -> None:
    """Each turn but a conversation's first went out token-in, none is lost or twice; each token is trained once.

    `scripts` are by the rollouts' ids, `worth` by who asked: 1 where it does not say.
    """
    rollouts = {rollout.id: rollout for rollout in read_rollouts(run)}
    assert rollouts.keys() == scripts.keys()
    for name, rollout in rollouts.items():
        script = scripts[name]
        fallbacks = [turn.fallback for turn in rollout.turns if turn.fallback is not None]
        played = rollout.failure, rollout.reward, len(rollout.turns)
        assert played == (None, 1.0, script.turns), f"{name}, {script.steps}: {played}"
        assert fallbacks == [FallbackReason.FIRST_TURN] * (1 + script.helpers), f"{name}: {fallbacks}"
    samples = list(samples_of_run(run))
    sampled = sum(turn.completion_tokens for rollout in rollouts.values() for turn in rollout.turns)
    assert sum(sum(sample.loss_mask) for sample in samples) == sampled
    assert len(samples) == sum(1 + script.helpers for script in scripts.values())
    assert [sample.reward for sample in samples] == [worth.get(sample.agent, 1.0) for sample in samples]

"""TRL's own GRPOTrainer learns from the engine's rollouts, and takes whatever becomes of them."""

from __future__ import annotations

import inspect
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from benchmarks.trl.example import disagreement
from envs.guess_number import GuessNumber
from rollout import EngineConfig, EngineThread, Env, Message, Step, user
from rollout.trainers import trl
from tests.docs_kit import PROJECT, blocks
from tests.live.trainers.kit import MARKS, grpo

pytestmark = MARKS

#: The section of docs/trainer.md that is played here.
SECTION = "TRL"

CONFIG = EngineConfig(max_tokens=24, concurrency=32, sampling={"temperature": 1.0})

#: Between the sampler in numpy and the trainer in torch, both in float32.
APART = 1e-3


class Unreliable(Env):
    """One turn, rewarded by the length of the answer; every fourth rollout of a process has no sandbox."""

    made = 0

    def tasks(self, n: int, seed: int) -> Any:
        return ({"number": number} for number in range(n))

    async def reset(self, task: Any) -> list[Message]:
        Unreliable.made += 1
        if Unreliable.made % 4 == 0:
            raise RuntimeError("no sandbox")
        return [user(f"Guess my number from 1 to 64. {task['number']} guesses left.")]

    async def step(self, message: Message) -> Step:
        return Step(done=True, reward=float(len(message.text)))


class Rewrites(Env):
    """Two turns, the second of which begins a conversation anew: two branches."""

    def tasks(self, n: int, seed: int) -> Any:
        return ({"number": number} for number in range(n))

    async def reset(self, task: Any) -> list[Message]:
        self.turns = 0
        return [user("Guess my number from 1 to 64.")]

    async def step(self, message: Message) -> Step:
        self.turns += 1
        if self.turns == 1:
            return Step(conversation=[user("Guess another number from 1 to 9.")])
        return Step(done=True, reward=float(len(message.text)))


class Kept:
    """A `rollout_func` that remembers what it was asked and what it answered."""

    def __init__(self, inner: trl.RolloutFunc) -> None:
        self._inner = inner
        self.asked: list[list[Any]] = []
        self.answered: list[dict[str, list[Any]]] = []
        self.apart = 0.0

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        self.asked.append(list(prompts))
        fields = self._inner(prompts, trainer)
        self.answered.append(fields)
        self.apart = max(self.apart, disagreement(trainer.model, fields, 8))
        return fields


def logged(trainer: Any, name: str) -> list[float]:
    """A number of each step."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_the_policy_learns() -> None:
    """30 steps raise the mean reward by 0.05 or more, and both sides agree on every sampled token's logprob."""
    command = [sys.executable, "-m", "benchmarks.trl.example", "--seed", "0", "--at-least", "0.05"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=900, check=False)
    print(done.stdout[-2_000:])
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = re.findall(r"^\| 0 \| (.*) \|$", done.stdout, re.MULTILINE)
    first, last, difference, apart, failed, _ = row.split(" | ")
    assert float(last) - float(first) == pytest.approx(float(difference), abs=2e-3)
    assert float(apart) < APART
    assert failed == "0"


def test_the_trainer_has_what_is_read_of_it(tmp_path: Path) -> None:
    """Names of the installed release: the argument, what it is called with, and the keys that it is to give."""
    from trl import GRPOTrainer

    assert "rollout_func" in inspect.signature(GRPOTrainer.__init__).parameters
    source = inspect.getsource(GRPOTrainer)
    assert "self.rollout_func(prompts, self)" in source
    assert 'required_keys = {"prompt_ids", "completion_ids", "logprobs"}' in source
    assert 'extra_fields.pop("env_mask", None)' in source


def test_weights_go_out_and_rows_come_back_each_step(tmp_path: Path) -> None:
    """Two steps: TRL's sampler hands out each prompt in as many copies as it has generations, each is a row, the
    servers have the policy of each step, whose folder alone is left, and a step's tokens are of its version."""
    with EngineThread(CONFIG, GuessNumber) as engine:
        kept = Kept(trl.rollout_func(engine))
        trainer = grpo(tmp_path, kept, trl.prompts(GuessNumber().tasks(8, seed=0)), trl.reward)
        trainer.train()
        assert engine.weight_version == "1"
    assert [[len(list(copies)) for _, copies in groupby(asked)] for asked in kept.asked] == [[4, 4], [4, 4]]
    assert [set(fields["rollout_versions"]) for fields in kept.answered] == [{("0",)}, {("1",)}]
    assert kept.apart < APART
    assert [path.name for path in (tmp_path / "policy").iterdir()] == ["version-1"]
    assert len(logged(trainer, "loss")) == 2
    assert logged(trainer, "rollouts/failed") == [0.0, 0.0]
    assert any(abs(norm) > 0 for norm in logged(trainer, "grad_norm"))


def test_a_second_training_plays_its_own_policy(tmp_path: Path) -> None:
    """It begins at step 0 again, with other weights than the servers had at that step: both sides agree all the same,
    and the version is another one. So after the policy was set back without a step."""
    with EngineThread(CONFIG, GuessNumber) as engine:
        kept = Kept(trl.rollout_func(engine))
        prompts = trl.prompts(GuessNumber().tasks(2, seed=0))
        trainer = grpo(tmp_path, kept, prompts, trl.reward, max_steps=1, learning_rate=1e-2)
        before = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
        trainer.train()
        trainer.train()
        trainer.evaluate()
        trainer.model.load_state_dict(before)
        trainer.evaluate()
    assert [set(fields["rollout_versions"]) for fields in kept.answered] == [{(str(at),)} for at in range(4)]
    assert kept.apart < APART


def test_prompts_that_come_once_give_the_same_rows(tmp_path: Path) -> None:
    """As TRL's docstring has it, and its sampler has not: whichever a release does, rows are as many as its batch."""
    with EngineThread(CONFIG, GuessNumber) as engine:
        kept = Kept(trl.rollout_func(engine))
        trainer = grpo(tmp_path, kept, trl.prompts(GuessNumber().tasks(8, seed=0)), trl.reward, max_steps=1)
        trainer.train()
        (asked,) = kept.asked
        once = [prompt for prompt, _ in groupby(asked)]
        trainer.model.train()
        fields = kept(once, trainer)
    assert (len(asked), len(once)) == (8, 2)
    assert len(fields["prompt_ids"]) == len(kept.answered[0]["prompt_ids"]) == 8
    numbers = [identifier.rpartition("-")[0] for identifier in fields["rollout_id"]]
    assert [len(list(members)) for _, members in groupby(numbers)] == [4, 4]


def test_an_evaluation_is_played_too(tmp_path: Path) -> None:
    """With its own number of generations, on the policy as it is, which is not pushed twice."""
    with EngineThread(CONFIG, GuessNumber) as engine:
        kept = Kept(trl.rollout_func(engine))
        prompts = trl.prompts(GuessNumber().tasks(6, seed=0))
        trainer = grpo(tmp_path, kept, prompts, trl.reward, num_generations_eval=2)
        found = trainer.evaluate()
        updates = engine.stats().weight_updates
    assert [len(fields["prompt_ids"]) for fields in kept.answered] == [8, 4]
    assert updates == 1
    assert 0 <= found["eval_reward"] <= 1


def test_failed_rollouts_neither_end_a_step_nor_count_as_zero(tmp_path: Path) -> None:
    """TRL's mean reward is that of the others, the failures are in its log by reason, and the step trains."""
    with EngineThread(CONFIG, Unreliable) as engine:
        kept = Kept(trl.rollout_func(engine))
        trainer = grpo(tmp_path, kept, trl.prompts(Unreliable().tasks(8, seed=0)), trl.reward)
        trainer.train()
    for fields, reward, failed in zip(
        kept.answered, logged(trainer, "reward"), logged(trainer, "rollouts/failed/environment"), strict=True
    ):
        finished = [value for value in fields["rollout_reward"] if value is not None]
        assert len(finished) == 6
        assert reward == pytest.approx(math.fsum(finished) / 6, rel=1e-4)
        assert reward > 0
        assert failed == 0.25
    assert all(math.isfinite(loss) for loss in logged(trainer, "loss"))


def test_failed_rows_move_no_weight(tmp_path: Path) -> None:
    """A step whose rows all failed leaves the policy as it was, where a run has chosen to go on through such steps."""

    def all_failed(prompts: Sequence[Any], trainer: Any) -> dict[str, list[Any]]:
        from rollout.trainers.trl.rows import empty_row, fields_of

        return fields_of([empty_row(trainer.eos_token_ids[0], "timeout", "late") for _ in prompts])

    trainer = grpo(tmp_path, all_failed, trl.prompts(GuessNumber().tasks(8, seed=0)), trl.reward, max_steps=1)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert all(bool((value == before[name]).all()) for name, value in trainer.model.named_parameters())
    assert logged(trainer, "rollouts/failed") == [1.0]


@pytest.mark.parametrize(("branches", "failed"), [("longest", 0.0), ("last", 0.0), ("mask", 1.0)])
def test_several_branches_are_answered_as_it_was_set(branches: Any, failed: float, tmp_path: Path) -> None:
    """One branch is the row and the other is counted, or the rollout is left out with its reason."""
    with EngineThread(CONFIG, Rewrites) as engine:
        kept = Kept(trl.rollout_func(engine, branches=branches, max_failed=None))
        trainer = grpo(tmp_path, kept, trl.prompts(Rewrites().tasks(8, seed=0)), trl.reward, max_steps=1)
        trainer.train()
    assert logged(trainer, "rollouts/branched") == [1.0]
    assert logged(trainer, "rollouts/failed") == [failed]
    assert (logged(trainer, "rollouts/left_out_tokens")[0] > 0) is not (branches == "mask")
    assert logged(trainer, "rollouts/failed/several_branches") == [1.0] * (branches == "mask")
    assert kept.apart < APART


def test_what_the_manual_prints_trains(tmp_path: Path) -> None:
    """Its block is run as it stands."""
    scripts = [
        block
        for block in blocks(PROJECT / "docs" / "trainer.md")
        if block.section == SECTION and block.language == "python"
    ]
    assert scripts
    for block in scripts:
        script = tmp_path / f"block_{block.line}.py"
        script.write_text(block.text)
        done = subprocess.run(
            [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{block}: {done.stderr[-3000:]}"

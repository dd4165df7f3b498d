"""`rollout_func` answers a step's prompts with a row for each rollout, in their order, whatever becomes of them."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rollout import EngineConfig, EngineThread, Env, Message, Step, user
from rollout.errors import ConfigError, TooManyFailures
from rollout.trainers.trl import prompts, rollout_func
from transports.scripted import ScriptedTransport, reply


class Named(Env):
    """One turn; the reward is the task's number. A task may ask for a failure, or for a second branch."""

    async def reset(self, task: Any) -> list[Message]:
        self.task, self.forked = task, False
        if task.get("fails"):
            raise RuntimeError("no sandbox")
        return [user(f"say {task['number']}")]

    async def step(self, message: Message) -> Step:
        if self.task.get("forks") and not self.forked:
            self.forked = True
            return Step(conversation=[user("another start")])
        return Step(done=True, reward=float(self.task["number"]))


class Accelerator(SimpleNamespace):
    """One process."""

    is_main_process = True
    num_processes = 1

    def wait_for_everyone(self) -> None:
        pass


class Parameter:
    """A tensor, which counts what was changed in it."""

    _version = 0


class Policy:
    """What is read of a model."""

    def __init__(self, training: bool = True) -> None:
        self.training = training
        self.tensors = [Parameter(), Parameter()]

    def parameters(self) -> list[Parameter]:
        return self.tensors


def trainer(
    tmp_path: Path,
    *,
    rows: int,
    generations: int = 2,
    training: bool = True,
    step: int = 0,
    policy: Policy | None = None,
    state: Any = None,
) -> Any:
    """What `rollout_func` reads of a GRPOTrainer."""
    return SimpleNamespace(
        model=policy or Policy(training),
        num_generations=generations,
        num_generations_eval=1,
        eos_token_ids=[7],
        state=state or SimpleNamespace(global_step=step, max_steps=0),
        accelerator=Accelerator(),
        args=SimpleNamespace(
            per_device_train_batch_size=rows,
            steps_per_generation=1,
            per_device_eval_batch_size=rows,
            temperature=1.0,
            output_dir=str(tmp_path),
        ),
    )


def opened(*, answers: int = 64) -> EngineThread:
    config = EngineConfig(concurrency=4, sampling={"temperature": 1.0})
    return EngineThread(config, Named, transport=ScriptedTransport([reply("ok")] * answers, weights=True))


def texts(*tasks: dict[str, Any]) -> list[str]:
    return [row["prompt"] for row in prompts(tasks)]


@pytest.mark.parametrize("repeated", [True, False])
def test_a_row_for_each_rollout_in_the_order_of_the_prompts(repeated: bool, tmp_path: Path) -> None:
    """Prompts that the sampler repeats and prompts that come once give the same rows."""
    given = texts({"number": 1}, {"number": 2}, {"number": 3})
    if repeated:
        given = [prompt for prompt in given for _ in range(2)]
    with opened() as engine:
        fields = rollout_func(engine, push=False)(given, trainer(tmp_path, rows=6))
    assert fields["rollout_reward"] == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert len(set(fields["rollout_id"])) == 6
    assert {len(column) for column in fields.values()} == {6}


def test_an_evaluation_has_its_own_number_of_rollouts(tmp_path: Path) -> None:
    """`num_generations_eval`, which may be one."""
    with opened() as engine:
        fields = rollout_func(engine, push=False)(
            texts({"number": 1}, {"number": 2}), trainer(tmp_path, rows=8, training=False)
        )
    assert fields["rollout_reward"] == [1.0, 2.0]


def test_a_failure_is_a_row_without_a_reward_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The step goes on; the others have their rewards."""
    given = texts({"number": 1}, {"number": 2, "fails": True})
    with opened() as engine, caplog.at_level(logging.WARNING, "rollout"):
        fields = rollout_func(engine, push=False)(given, trainer(tmp_path, rows=4))
    assert fields["rollout_reward"] == [1.0, 1.0, None, None]
    assert fields["rollout_failure"] == ["", "", "environment", "environment"]
    assert [fields["completion_ids"][at] for at in (2, 3)] == [[7], [7]]
    (record,) = [record for record in caplog.records if getattr(record, "event", "") == "rollouts_without_row"]
    assert record.fields["kinds"] == {"environment": 2}  # type: ignore[attr-defined]


def test_a_step_of_failures_alone_is_an_error(tmp_path: Path) -> None:
    """There is nothing to learn from, and an optimizer with momentum would move all the same."""
    with (
        opened() as engine,
        pytest.raises(TooManyFailures, match=r"4 of 4 .*\(environment 4\).*no sandbox.*max_failed"),
    ):
        rollout_func(engine, push=False)(texts(*[{"number": 1, "fails": True}] * 2), trainer(tmp_path, rows=4))


def test_a_run_may_go_on_through_failures_alone(tmp_path: Path) -> None:
    """Where that is asked for; and a share of them may be enough to end it."""
    failing = texts(*[{"number": 1, "fails": True}] * 2)
    with opened() as engine:
        fields = rollout_func(engine, push=False, max_failed=None)(failing, trainer(tmp_path, rows=4))
        assert fields["rollout_failure"] == ["environment"] * 4
        half = [failing[0], *texts({"number": 2})]
        with pytest.raises(TooManyFailures, match="2 of 4"):
            rollout_func(engine, push=False, max_failed=0.5)(half, trainer(tmp_path, rows=4))


def test_branches_are_left_out_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Which one becomes the row is a setting; how many tokens no row has is logged and in the columns."""
    given = texts({"number": 1, "forks": True}, {"number": 2})
    with opened() as engine, caplog.at_level(logging.WARNING, "rollout"):
        fields = rollout_func(engine, push=False)(given, trainer(tmp_path, rows=4))
        assert fields["rollout_branches"] == [2, 2, 1, 1]
        assert [left_out > 0 for left_out in fields["rollout_left_out"]] == [True, True, False, False]
        assert any(getattr(record, "event", "") == "branches_left_out" for record in caplog.records)
        masked = rollout_func(engine, push=False, branches="mask")(given, trainer(tmp_path, rows=4))
        assert masked["rollout_reward"] == [None, None, 2.0, 2.0]
        with pytest.raises(ConfigError, match="2 branches"):
            rollout_func(engine, push=False, branches="refuse")(given, trainer(tmp_path, rows=4))


def write_weights(trainer: Any, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights")


def test_the_policy_is_pushed_once_a_step(tmp_path: Path) -> None:
    """Its version is the step, one folder is left, and each row says which version sampled it."""
    saved: list[str] = []

    def save(trainer: Any, folder: Path) -> None:
        saved.append(folder.name)
        write_weights(trainer, folder)

    given, policy = texts({"number": 1}, {"number": 2}), Policy()
    with opened() as engine:
        play = rollout_func(engine, save=save)
        trainers = [trainer(tmp_path, rows=4, step=step, policy=policy) for step in (0, 0, 3)]
        versions = [play(given, one)["rollout_versions"][0] for one in trainers]
        assert engine.weight_version == "3"
    assert saved == [".version-0.partial", ".version-3.partial"]
    assert versions == [("0",), ("0",), ("3",)]
    assert [path.name for path in (tmp_path / "policy").iterdir()] == ["version-3"]


def test_another_policy_at_the_same_step_is_pushed_under_a_name_of_its_own(tmp_path: Path) -> None:
    """A second training begins at step 0 again, the best model is loaded without a step, somebody else pushes: a
    version names one policy, for servers cache by it."""
    given, policy = texts({"number": 1}, {"number": 2}), Policy()

    def played(step: int, state: Any = None) -> str:
        rows = play(given, trainer(tmp_path, rows=4, step=step, policy=policy, state=state))
        ((version,),) = set(rows["rollout_versions"])
        return str(version)

    with opened() as engine:
        play = rollout_func(engine, save=write_weights)
        assert [played(0), played(2), played(2)] == ["0", "2", "2"]
        policy.tensors[1]._version += 1  # loaded into the same tensors
        assert [played(2), played(2)] == ["3", "3"]
        policy = Policy()  # another trainer
        assert [played(0), played(0), played(1)] == ["4", "4", "5"]
        engine.update_weights(9, tmp_path)
        assert [played(1), played(12)] == ["10", "12"]
        training, another = (SimpleNamespace(global_step=12, max_steps=20) for _ in range(2))
        assert [played(12, training), played(12, training), played(12, another)] == ["12", "12", "13"]


def test_a_save_that_touches_the_weights_is_no_other_policy(tmp_path: Path) -> None:
    """Such as one that merges an adapter, and takes it out again."""
    policy, saved = Policy(), []

    def merged(trainer: Any, folder: Path) -> None:
        trainer.model.tensors[0]._version += 2
        saved.append(folder.name)
        write_weights(trainer, folder)

    with opened() as engine:
        play = rollout_func(engine, save=merged)
        for _ in range(2):
            play(texts({"number": 1}, {"number": 2}), trainer(tmp_path, rows=4, policy=policy))
    assert len(saved) == 1


def test_sampling_that_the_trainer_asks_for_and_nobody_heeds_is_refused(tmp_path: Path) -> None:
    """The engine samples: what GRPOConfig says must be what it is set to."""
    given = trainer(tmp_path, rows=4)
    given.args.top_p, given.args.top_k = 1.0, 0
    prompts_ = texts({"number": 1}, {"number": 2})
    with opened() as engine:
        play = rollout_func(engine, push=False)
        play(prompts_, given)
        given.args.top_p = 0.5
        with pytest.raises(ConfigError, match=r"GRPOConfig\(top_p=0\.5\) has no effect.*EngineConfig\.sampling"):
            play(prompts_, given)


@pytest.mark.parametrize("base_url", ["http://gpu-7:8000", None])
def test_one_process_of_several_has_the_servers_load(base_url: str | None, tmp_path: Path) -> None:
    """The others are told the version alone; only an embedded model, which is each process's own, is loaded by each.
    All take part in gathering the weights, and one writes them."""
    saved: list[bool] = []

    def save(trainer: Any, folder: Path) -> None:
        saved.append(trainer.accelerator.is_main_process)
        if trainer.accelerator.is_main_process:
            (folder / "model.safetensors").write_bytes(b"weights")

    pushed: list[Any] = []
    for main in (True, False):
        transport = ScriptedTransport([reply("ok")] * 4, weights=True)
        config = EngineConfig(base_url=base_url, sampling={"temperature": 1.0})
        with EngineThread(config, Named, transport=transport) as engine:
            given = trainer(tmp_path, rows=4, step=5)
            given.accelerator.is_main_process = main
            rollout_func(engine, save=save)(texts({"number": 1}, {"number": 2}), given)
        pushed += transport.pushed
    folder = str(tmp_path / "policy" / "version-5")
    assert saved == [True, False]
    assert pushed == [("5", folder), ("5", None if base_url else folder)]


def test_another_task_is_made_of_a_prompt_by_a_function(tmp_path: Path) -> None:
    """A data set of one's own keeps its prompts."""
    with opened() as engine:
        play = rollout_func(engine, push=False, task=lambda prompt: {"number": int(prompt[-1]["content"])})
        fields = play([[{"role": "user", "content": "4"}]] * 2, trainer(tmp_path, rows=2))
    assert fields["rollout_reward"] == [4.0, 4.0]


@pytest.mark.parametrize(
    ("given", "said"),
    [({"branches": "all"}, "branches"), ({"max_failed": 0}, "max_failed"), ({"in_flight": "x"}, "in_")],
)
def test_a_setting_that_cannot_be_is_refused_at_once(given: dict[str, Any], said: str) -> None:
    """Before a model is loaded."""
    with pytest.raises(ConfigError, match=said):
        rollout_func(opened(), **given)

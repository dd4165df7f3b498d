"""Samples in other trainers' forms hold exactly what was sampled, in the shape that their definitions say.

None of them is installed: what a definition says is written down here, with the place that it was read at.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from rollout.cli.app import app
from rollout.store.export import export, samples_of_run
from rollout.tokens.advantages import grpo
from rollout.tokens.sample_fields import SampleExperts
from rollout.tokens.samples import TrainingSample
from rollout.trainers import openrlhf, prime_rl, skyrl, slime
from rollout.trainers.prime_rl import PrimeSample
from rollout.trainers.rows import rows
from tests.rollout.trainers.test_rows import sample_of
from transports.scripted import experts_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run: four tasks of two rollouts."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    args = [
        "run",
        "guess_number",
        "-n",
        "4",
        "-r",
        "2",
        "--max-tokens",
        "8",
        "-s",
        "temperature=0.9",
        "-o",
        str(folder),
    ]
    assert CliRunner().invoke(app, args).exit_code == 0
    return folder


@pytest.fixture
def samples(run: Path) -> list[TrainingSample]:
    return list(samples_of_run(run, grpo))


#: One rollout of two branches, one of one, and one that trains on nothing.
BRANCHED = [
    sample_of([0, 1, 0, 0], member=0),
    sample_of([0, 0, 1, 1, 0, 1], member=0, finish="length"),
    sample_of([0, 1], member=1),
    sample_of([0, 0], member=2),
    sample_of([0, 1], task="u", member=0),
]


class TestPrimeRl:
    """PrimeIntellect-ai/prime-rl, src/prime_rl/transport/types.py at 2487f8342e751c23a380518ded8d966a748b4cd5."""

    FIELDS = (
        *("token_ids", "mask", "logprobs", "temperatures", "env_name", "ref_logprobs", "mm_kwargs", "routed_experts"),
        *("mm_token_type_ids", "rl_weights", "ce_weights", "ref_kl_weights", "advantages"),
    )

    def test_fields_stand_where_its_definition_has_them(self) -> None:
        """They go by position on its wire; what is left out has None for its default."""
        fields = msgspec.structs.fields(PrimeSample)
        assert tuple(field.name for field in fields) == self.FIELDS
        assert [field.name for field in fields if field.required] == list(self.FIELDS[:5])

    def test_a_file_holds_the_run(self, run: Path, samples: list[TrainingSample], tmp_path: Path) -> None:
        """All four arrays have the ids' length; each trained token has its sample's advantage."""
        done = export(run, tmp_path / "out", "prime-rl", "grpo")
        found = msgspec.msgpack.decode((tmp_path / "out").read_bytes(), type=list[PrimeSample])
        assert len(found) == done.samples == 8
        for one, sample in zip(found, samples, strict=True):
            assert one.token_ids == sample.token_ids.tolist()
            assert one.mask == [bool(trained) for trained in sample.loss_mask]
            assert one.logprobs == sample.logprobs.tolist()
            assert one.temperatures == sample.temperatures.tolist()
            assert sample.advantage is not None
            assert one.advantages == [sample.advantage * trained for trained in sample.loss_mask]

    def test_the_installed_class_decides(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The definition at cd4ec228164fa9ea15791c2d20adb6b0c7b40712 cuts a row in two: its fields go by name."""
        module = ModuleType("earlier")
        monkeypatch.setitem(sys.modules, "earlier", module)
        experts = msgspec.defstruct("RoutedExperts", [("data", bytes), ("shape", list[int]), ("dtype", str)])
        vars(module)["RoutedExperts"] = experts
        earlier = msgspec.defstruct(
            "TrainingSample",
            [
                ("prompt_ids", list[int]),
                ("prompt_mask", list[bool]),
                ("completion_ids", list[int]),
                ("completion_mask", list[bool]),
                ("completion_logprobs", list[float]),
                ("completion_temperatures", list[float]),
                ("teacher_logprobs", list[float] | None, None),
                ("advantage", float | None, None),
                ("reward", float | None, None),
                ("routed_experts", experts | None, None),
            ],
            array_like=True,
            module="earlier",
        )
        sample = sample_of([0, 1, 0, 1])
        sample.advantage, sample.routed_experts = 0.5, SampleExperts(4, [(0, experts_of([5, 6, 7]))])
        (made,) = prime_rl.training_samples([sample], of=earlier)
        assert (made.prompt_ids, made.completion_ids, made.completion_mask) == ([0], [1, 2, 3], [True, False, True])
        assert (made.advantage, made.reward, len(made.completion_temperatures)) == (0.5, 0.0, 3)
        array = np.frombuffer(made.routed_experts.data, made.routed_experts.dtype).reshape(made.routed_experts.shape)
        assert array.tolist() == sample.routed_experts.to_numpy().tolist()

    def test_a_field_that_is_not_known_is_named(self) -> None:
        """A definition that wants more than is known here is refused, not filled with something."""
        later = msgspec.defstruct("TrainingSample", [("token_ids", list[int]), ("credit", list[float])], module="later")
        with pytest.raises(ValueError, match=r"later\.TrainingSample wants 'credit'"):
            next(prime_rl.training_samples(BRANCHED, of=later))


class TestSkyRl:
    """NovaSky-AI/SkyRL, skyrl/train/generators/base.py at 73251e12c43575a2393b2943dc5d1e85ac9d5662, and of 0.4.0."""

    KEYS = (
        *("prompt_token_ids", "response_ids", "rewards", "loss_masks", "stop_reasons", "rollout_metrics"),
        *("rollout_logprobs", "trajectory_ids", "trajectory_generation_times", "trajectory_time_splits"),
        *("rollout_expert_indices", "rollout_sample_support", "is_last_step", "env_metrics", "pixel_values"),
        "image_grid_thw",
    )

    @dataclasses.dataclass
    class TrajectoryID:
        instance_id: str
        repetition_id: int

    def test_its_keys_and_lengths(self, samples: list[TrainingSample]) -> None:
        """Every key of its definition; what `validate_generator_output` asserts of the columns holds."""
        found = skyrl.generator_output(samples, trajectory_id=self.TrajectoryID)
        assert sorted(found) == sorted(self.KEYS)
        assert found["is_last_step"] is None
        for ids, mask, logprobs in zip(
            found["response_ids"], found["loss_masks"], found["rollout_logprobs"], strict=True
        ):
            assert len(ids) == len(mask) == len(logprobs) > 0
        for name in ("prompt_token_ids", "rewards", "stop_reasons", "trajectory_ids"):
            assert len(found[name]) == 8
        assert found["trajectory_ids"][1] == self.TrajectoryID(samples[1].task_id, 1)
        assert set(found["stop_reasons"]) <= {"stop", "length"}
        assert found["rewards"] == [sample.reward for sample in samples]

    def test_branches_are_steps(self) -> None:
        """A rollout's rows lie together, the last of them is marked; and without step_wise they are refused."""
        found = skyrl.generator_output(BRANCHED, step_wise=True)
        assert found["is_last_step"] == [False, True, True, True]
        assert found["stop_reasons"] == ["stop", "length", "stop", "stop"]
        assert [one["repetition_id"] for one in found["trajectory_ids"]] == [0, 0, 1, 0]
        with pytest.raises(ValueError, match="'t-0' has 2 branches: give step_wise=True"):
            skyrl.generator_output(BRANCHED)

    def test_a_file_is_the_same(self, run: Path, samples: list[TrainingSample], tmp_path: Path) -> None:
        """Written column by column, it is what is made in memory."""
        export(run, tmp_path / "out", "skyrl", "grpo")
        assert json.loads((tmp_path / "out").read_text()) == skyrl.generator_output(samples, step_wise=True)


class TestSlime:
    """THUDM/slime, slime/utils/types.py at 0d234f3e3a83c81b7d37209994e0b994deacbb24."""

    FIELDS = frozenset(
        {
            *("group_index", "index", "prompt", "tokens", "multimodal_inputs", "multimodal_train_inputs", "response"),
            *("response_length", "label", "reward", "loss_mask", "weight_versions", "rollout_log_probs"),
            *("rollout_routed_experts", "remove_sample", "teacher_log_probs", "mopd_teacher_log_probs", "status"),
            *("metadata", "generate_function_path", "train_metadata", "session_id", "non_generation_time"),
            *("spec_info", "prefix_cache_info"),
        }
    )
    STATUSES = frozenset({"pending", "completed", "truncated", "aborted", "failed"})

    def test_a_file_holds_the_run(self, run: Path, samples: list[TrainingSample], tmp_path: Path) -> None:
        """Fields are its own; the loss mask has the response's length, as slime asserts, and the logprobs, too."""
        export(run, tmp_path / "out", "slime", "grpo")
        found = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
        assert len(found) == 8
        for one, sample in zip(found, samples, strict=True):
            assert one.keys() <= self.FIELDS
            assert one["status"] in self.STATUSES
            assert one["tokens"] == sample.token_ids.tolist()
            assert len(one["loss_mask"]) == len(one["rollout_log_probs"]) == one["response_length"]
            assert sum(one["loss_mask"]) == sum(sample.loss_mask)
            assert one["rollout_log_probs"] == sample.logprobs[-one["response_length"] :].tolist()
            assert one["metadata"]["advantage"] == pytest.approx(sample.advantage)
        assert [one["group_index"] for one in found] == [0, 0, 1, 1, 2, 2, 3, 3]
        assert [one["index"] for one in found] == list(range(8))

    def test_our_advantages_take_the_place_of_its_own(self, samples: list[TrainingSample]) -> None:
        """As its --custom-reward-post-process-path is called: raw rewards, and what GRPO takes for advantages."""
        made = [dataclasses.make_dataclass("Sample", one)(**one) for one in slime.sample_dicts(samples)]
        raw, advantages = slime.our_advantages(None, made)
        assert raw == [sample.reward for sample in samples]
        assert advantages == [sample.advantage for sample in samples]
        with pytest.raises(ValueError, match="no advantage"):
            slime.our_advantages(None, [dataclasses.make_dataclass("Sample", one)(**one) for one in branched()])

    def test_branches_share_a_group(self) -> None:
        """Each branch is a sample of its rollout's session and its task's group."""
        found = list(branched())
        assert [one["group_index"] for one in found] == [0, 0, 0, 1]
        assert [one["session_id"] for one in found] == ["t-0", "t-0", "t-1", "u-0"]
        assert [one["metadata"]["branch"] for one in found] == [0, 1, 0, 0]
        assert found[0]["weight_versions"] == ["3"]


def branched() -> Iterator[dict[str, Any]]:
    return slime.sample_dicts(BRANCHED)


class TestOpenRlhf:
    """OpenRLHF 0.11.2, openrlhf/utils/agent.py: what `MultiTurnAgentExecutor.execute` gives back."""

    KEYS = frozenset(
        {
            *("prompt", "label", "images", "mm_train_inputs", "reward", "scores", "observation_tokens"),
            *("action_ranges", "rollout_log_probs", "truncated", "extra_logs"),
        }
    )

    def test_a_file_holds_the_run(self, run: Path, samples: list[TrainingSample], tmp_path: Path) -> None:
        """Its keys; what OpenRLHF makes of the ranges is our mask, and each id has its logprob."""
        export(run, tmp_path / "out", "openrlhf", "grpo")
        found = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
        for one, sample in zip(found, samples, strict=True):
            assert one.keys() == self.KEYS | {"task_id", "rollout_id", "branch"}
            assert one["observation_tokens"] == sample.token_ids.tolist()
            mask = np.zeros(len(one["observation_tokens"]), int)
            for start, end in one["action_ranges"]:
                mask[start:end] = 1
            assert mask.tolist() == sample.loss_mask.tolist()
            assert one["rollout_log_probs"] == sample.logprobs.tolist()
            assert one["reward"] == one["scores"] == sample.reward

    def test_an_executor_hands_in_what_it_was_asked(self) -> None:
        """Prompt and label go through; whether it was cut off is the last answer's to say."""
        found = list(openrlhf.responses(BRANCHED, prompt="Guess.", label="7"))
        assert {(one["prompt"], one["label"]) for one in found} == {("Guess.", "7")}
        assert [one["truncated"] for one in found] == [False, True, False, False]
        assert found[1]["action_ranges"] == [(2, 4), (5, 6)]


@pytest.mark.parametrize("write", [prime_rl.write, skyrl.write, slime.write, openrlhf.write])
def test_writing_holds_no_run_in_memory(
    write: Callable[[Path, Iterator[TrainingSample]], None], tmp_path: Path
) -> None:
    """Ten times the samples take no more memory."""

    def many(count: int) -> Iterator[TrainingSample]:
        return (sample_of([0, *[1] * 200], member=member) for member in range(count))

    peaks = []
    for count in (50, 50, 500):
        tracemalloc.start()
        write(tmp_path / "out", many(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.5 * peaks[1]
    assert sum(1 for _ in rows(many(500))) == 500

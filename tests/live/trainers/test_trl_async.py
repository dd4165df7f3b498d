"""The engine keeps the protocols of the installed AsyncGRPOTrainer, and trains in it."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer, packing
from trl.experimental.async_grpo.async_grpo_trainer import (
    RolloutWorkerProtocol,
    WeightTransferProtocol,
    _iter_vllm_named_params,
)
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

from benchmarks.trl.example import ON_CPU, disagreement
from envs.guess_number import GuessNumber
from rollout import EngineConfig, EngineThread
from rollout.trainers import trl
from rollout.trainers.trl.folders import copy_beside, write_tensors
from rollout.trainers.trl.rows import fields_of, row_of
from tests.docs_kit import PROJECT, blocks
from tests.live.trainers.kit import MARKS, model
from transports.embedded import MODEL_DIR

pytestmark = MARKS

CONFIG = EngineConfig(max_tokens=24, concurrency=16, sampling={"temperature": 1.0})

NEVER_S = 60

#: The section of docs/trainer.md that is played here.
SECTION = "TRL, asynchronously"


def tasks() -> Any:
    return itertools.chain.from_iterable(GuessNumber().tasks(16, seed=seed) for seed in itertools.count())


@pytest.mark.parametrize(
    ("protocol", "ours"), [(RolloutWorkerProtocol, trl.RolloutWorker), (WeightTransferProtocol, trl.FolderTransfer)]
)
def test_every_method_of_a_protocol_is_there(protocol: Any, ours: Any) -> None:
    """With the parameters that the trainer gives, by the release's own definition."""
    wanted = {name: member for name, member in vars(protocol).items() if inspect.isfunction(member)}
    wanted = {name: member for name, member in wanted.items() if not name.startswith("_")}
    assert len(wanted) >= 4
    for name, member in wanted.items():
        assert list(inspect.signature(getattr(ours, name)).parameters) == list(inspect.signature(member).parameters)


def test_every_attribute_of_the_workers_protocol_is_there() -> None:
    """Two queues, with what the trainer calls of them; and a sample that is made as the release makes it."""
    with EngineThread(CONFIG, GuessNumber) as engine:
        worker = trl.RolloutWorker(engine, tasks(), rollouts_per_task=2)
        for name in inspect.get_annotations(RolloutWorkerProtocol):
            assert {"get", "get_nowait", "qsize"} <= set(dir(getattr(worker, name)))
        worker.start()
        sample = worker.rollout_buffer.get(timeout=NEVER_S)
        worker.stop()
    assert isinstance(sample, RolloutSample)
    assert all(getattr(sample, field.name) is not None for field in dataclasses.fields(RolloutSample))
    assert sample.input_ids.shape == sample.completion_mask.shape == sample.old_log_probs.shape


def test_streamed_tensors_are_what_is_served(tmp_path: Path) -> None:
    """Weights that were changed in the trainer and streamed as the trainer streams them: the servers' logprobs are
    those of the changed model, and no longer of the old one."""
    old, changed = model(), model()
    with torch.no_grad():
        for index, value in enumerate(changed.parameters()):
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(index)), alpha=5e-3)
    with EngineThread(CONFIG, GuessNumber) as engine:
        transfer = trl.FolderTransfer(engine, tmp_path / "policy", model=MODEL_DIR)
        transfer.init_weight_transfer()
        transfer.pause()
        transfer.send_weights((name, value.detach()) for name, value in _iter_vllm_named_params(changed))
        transfer.resume()
        groups = [engine.submit(task, rollouts=2).result() for task in GuessNumber().tasks(2, seed=0)]
        transfer.destroy()
        assert engine.weight_version == "1"
    fields = fields_of([row_of(rollout, "refuse", filler=0) for group in groups for rollout in group.rollouts])
    assert disagreement(changed, fields, 4) < 1e-3
    assert disagreement(old, fields, 4) > 1e-2
    assert [path.name for path in (tmp_path / "policy").iterdir()] == ["version-1"]


def test_many_files_of_weights_are_one_model(tmp_path: Path) -> None:
    """Where they are larger than one file may be, an index names the file of each; transformers loads the folder."""
    before = model()
    copy_beside(MODEL_DIR, tmp_path)
    count = write_tensors(tmp_path, _iter_vllm_named_params(before), shard_bytes=500_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    after = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    values = dict(after.named_parameters())
    assert count == len(values)
    assert all(torch.equal(value, values[name]) for name, value in before.named_parameters())


def test_a_tensor_that_comes_twice_is_refused(tmp_path: Path) -> None:
    """One of the two would be lost."""
    with pytest.raises(ValueError, match="a was sent twice"):
        write_tensors(tmp_path, [("a", torch.zeros(1)), ("a", torch.ones(1))])


class OnCpu:
    """Stands in for the trainer's attention kernel, which is FlashAttention's and of GPUs: the same by plain torch."""

    @staticmethod
    def flash_attn_varlen_func(
        q: Any, k: Any, v: Any, ends_q: Any, ends_k: Any, most_q: int, most_k: int, softmax_scale: float, **_: Any
    ) -> Any:
        groups = q.shape[1] // k.shape[1]
        found = []
        for at in range(len(ends_q) - 1):
            one = q[ends_q[at] : ends_q[at + 1]].transpose(0, 1)
            keys, values = (
                whole[ends_k[at] : ends_k[at + 1]].repeat_interleave(groups, 1).transpose(0, 1) for whole in (k, v)
            )
            # Causal, and the last query stands at the last key.
            sees = torch.ones(one.shape[1], keys.shape[1], dtype=torch.bool).tril(keys.shape[1] - one.shape[1])
            attended = torch.nn.functional.scaled_dot_product_attention(
                one, keys, values, attn_mask=sees, scale=softmax_scale
            )
            found.append(attended.transpose(0, 1))
        return torch.cat(found)


def test_the_async_trainer_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of the real trainer: it drains our queue, its weights come to our servers, its numbers are on the
    rows, and under the weights that sampled them its ratios are 1. Only what a
    GPU is needed for is replaced: its attention kernel, and its name."""
    monkeypatch.setattr(packing, "_flash_attn", OnCpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "none")  # it is asked for, whatever trains
    config = EngineConfig(max_tokens=16, concurrency=4, sampling={"temperature": 1.0})
    with EngineThread(config, partial(GuessNumber, guesses=2)) as engine:
        worker = trl.RolloutWorker(engine, tasks(), rollouts_per_task=4, queue_size=4, ahead=1)
        transfer = trl.FolderTransfer(engine, tmp_path / "policy", model=MODEL_DIR, in_flight="abort")
        trainer = AsyncGRPOTrainer(
            str(MODEL_DIR),
            processing_class=AutoTokenizer.from_pretrained(MODEL_DIR),
            train_dataset=Dataset.from_list(trl.prompts(GuessNumber().tasks(4, seed=0))),
            rollout_worker=worker,
            weight_transfer=transfer,
            args=AsyncGRPOConfig(
                output_dir=str(tmp_path / "out"),
                per_device_train_batch_size=4,
                gradient_accumulation_steps=1,
                max_steps=3,
                learning_rate=1e-3,
                token_budget=4096,
                max_staleness=4,
                weight_sync_steps=1,
                temperature=1.0,
                **ON_CPU,
            ),
        )
        trainer.train()
        # Once before the first step, and after each.
        assert (engine.weight_version, transfer.version, trainer.model_version) == ("4", 4, 4)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(history) == 3
    assert history[0]["ratio"] == pytest.approx(1, abs=1e-3)
    assert history[0]["sample/staleness_max"] == 0
    assert all(0 <= entry["sample/staleness_max"] <= 4 for entry in history)
    assert sum(entry.get("rollouts/played_total", 0) for entry in history) >= 8
    assert all(entry.get("rollouts/failed_total", 0) == 0 for entry in history)
    assert [path.name for path in (tmp_path / "policy").iterdir()] == ["version-4"]
    with pytest.raises(RuntimeError):
        worker.start()


def test_what_the_manual_prints_of_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its block runs as it stands for a step, but for the addresses and for what a GPU is needed for."""
    monkeypatch.setattr(packing, "_flash_attn", OnCpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "none")
    monkeypatch.chdir(tmp_path)
    page = PROJECT / "docs" / "trainer.md"
    (block,) = [block for block in blocks(page) if block.section == SECTION and block.language == "python"]
    text = block.text
    for printed, here in {
        '"/models/policy"': repr(str(MODEL_DIR)),
        '"/shared/policy"': repr(str(tmp_path / "shared")),
        'base_url="http://gpu-7:8000", ': "",
        "max_tokens=64": "max_tokens=16, concurrency=8",
        "max_steps=100": 'max_steps=1, use_cpu=True, bf16=False, report_to="none"',
    }.items():
        assert printed in text
        text = text.replace(printed, here)
    exec(compile(text, str(block), "exec"), {})
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["version-2"]

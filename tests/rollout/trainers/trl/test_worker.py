"""What fills `AsyncGRPOTrainer`'s queue: every branch, with the oldest version that sampled it; failures counted."""

from __future__ import annotations

import itertools
import queue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rollout import EngineConfig, EngineThread
from rollout.errors import ConfigError
from rollout.trainers.trl import FolderTransfer, RolloutWorker
from tests.rollout.trainers.trl.test_playing import Named
from transports.scripted import ScriptedTransport, reply

#: Seconds after which something never comes.
NEVER_S = 20


def opened() -> EngineThread:
    transport = ScriptedTransport(itertools.repeat(reply("ok"), 10_000), weights=True)
    return EngineThread(EngineConfig(concurrency=4), Named, transport=transport)


def worker(engine: EngineThread, tasks: Any, **given: Any) -> RolloutWorker:
    return RolloutWorker(engine, tasks, rollouts_per_task=2, make_sample=SimpleNamespace, **given)


def test_rows_come_with_their_groups_advantages() -> None:
    """Ids, mask and logprobs have one length; members of a group share its number."""
    with opened() as engine:
        playing = worker(engine, ({"number": number} for number in itertools.count()))
        playing.start()
        rows = [playing.rollout_buffer.get(timeout=NEVER_S) for _ in range(6)]
        playing.stop()
    assert [row.group_id for row in rows] == [0, 0, 1, 1, 2, 2]
    for row in rows:
        assert len(row.input_ids) == len(row.completion_mask) == len(row.old_log_probs)
        assert row.completion_mask.sum() > 0
        assert row.advantage == 0.0  # both members have their task's reward
        assert row.enqueued_at is not None
        assert [message["role"] for message in row.prompt + row.completion] == ["user", "assistant"]
    assert len({row.metrics["reward"] for row in rows}) == 3


def test_every_branch_is_a_row() -> None:
    """The trainer takes several rows of a rollout, so none is left out."""
    with opened() as engine:
        playing = worker(engine, ({"number": 1, "forks": True} for _ in itertools.count()))
        playing.start()
        rows = [playing.rollout_buffer.get(timeout=NEVER_S) for _ in range(4)]
        playing.stop()
    assert [row.group_id for row in rows] == [0] * 4


def test_failures_have_no_row_and_are_counted() -> None:
    """By kind, and beside how many rollouts there were."""
    tasks = [{"number": 1, "fails": True}, {"number": 2}]
    with opened() as engine:
        playing = worker(engine, tasks)
        playing.start()
        rows = [playing.rollout_buffer.get(timeout=NEVER_S) for _ in range(2)]
        playing.stop()
    assert {row.metrics["reward"] for row in rows} == {2.0}
    counted = [playing.metrics_queue.get_nowait() for _ in range(2)]
    assert sum(counts["rollouts/played_total"] for counts in counted) == 4
    assert sum(counts["rollouts/failed_total"] for counts in counted) == 2
    assert sum(counts.get("rollouts/failed_environment_total", 0) for counts in counted) == 2


def test_a_row_has_the_trainers_number_of_its_weights(tmp_path: Path) -> None:
    """Whatever the engine calls them: the trainer counts on from where it was resumed."""
    with opened() as engine:
        playing = worker(engine, ({"number": 1} for _ in itertools.count()), queue_size=2)
        engine.update_weights("a", tmp_path)
        playing.update_model_version(41)
        playing.start()
        assert playing.rollout_buffer.get(timeout=NEVER_S).model_version == 41
        engine.update_weights("b", tmp_path)
        playing.update_model_version(42)
        numbers = {playing.rollout_buffer.get(timeout=NEVER_S).model_version for _ in range(40)}
        playing.stop()
    assert numbers == {41, 42}


def test_a_queue_that_is_full_is_waited_for_and_left_when_it_is_to_stop() -> None:
    """A slow trainer holds nothing up but the worker, which is in good health meanwhile."""
    with opened() as engine:
        playing = worker(engine, ({"number": 1} for _ in itertools.count()), queue_size=1)
        playing.start()
        playing.rollout_buffer.get(timeout=NEVER_S)
        playing.check_health(NEVER_S)
        playing.stop()
        playing.stop()
    assert playing.rollout_buffer.qsize() <= 1


def test_a_worker_that_has_nothing_left_says_so() -> None:
    """The trainer waits for rows that never come, and asks."""
    with opened() as engine:
        playing = worker(engine, [{"number": 1}])
        playing.start()
        for _ in range(2):
            playing.rollout_buffer.get(timeout=NEVER_S)
        playing._thread.join(NEVER_S)  # type: ignore[union-attr]
        with pytest.raises(RuntimeError, match="played all of its tasks"):
            playing.check_health(60)


def test_what_ended_the_worker_is_the_cause() -> None:
    """Such as a source of tasks that raised."""

    def tasks() -> Any:
        yield {"number": 1}
        raise OSError("the disk is gone")

    with opened() as engine:
        playing = worker(engine, tasks())
        playing.start()
        playing._thread.join(NEVER_S)  # type: ignore[union-attr]
        with pytest.raises(RuntimeError, match="the rollout worker ended"):
            playing.check_health(60)


def test_rollouts_that_only_fail_are_no_sign_of_health() -> None:
    """No row comes, and the last failure is named."""
    with opened() as engine:
        playing = worker(engine, ({"number": 1, "fails": True} for _ in itertools.count()))
        playing.start()
        for _ in range(3):
            playing.metrics_queue.get(timeout=NEVER_S)
        with pytest.raises(RuntimeError, match=r"no row came .*no sandbox"):
            playing.check_health(0)
        playing.stop()
    with pytest.raises(queue.Empty):
        playing.rollout_buffer.get_nowait()


def test_a_transfer_goes_on_from_the_version_that_is_served(tmp_path: Path) -> None:
    """A trainer that is started again beside a server that runs names no version twice."""
    (tmp_path / "config.json").write_text("{}")
    with opened() as engine:
        engine.update_weights(7, tmp_path)
        transfer = FolderTransfer(engine, tmp_path / "policy", model=tmp_path)
        transfer.init_weight_transfer()
        assert transfer.version == 7
        with pytest.raises(ConfigError, match=r"no config\.json"):
            FolderTransfer(engine, tmp_path / "policy", model=tmp_path / "gone").init_weight_transfer()


def test_tensors_are_taken_to_their_end_where_they_cannot_be_written(tmp_path: Path) -> None:
    """Other processes of the trainer take part in gathering each: they would wait for ever."""
    tensors = iter([("a", 1), ("b", 2)])
    with opened() as engine:
        transfer = FolderTransfer(engine, tmp_path / "policy", model=tmp_path)
        with pytest.raises(ConfigError, match=r"no config\.json"):
            transfer.send_weights(tensors)
    assert list(tensors) == []
    assert transfer.version == 0


def test_a_worker_is_started_once() -> None:
    """Its queue is one trainer's."""
    with opened() as engine:
        playing = worker(engine, [{"number": 1}])
        playing.start()
        with pytest.raises(RuntimeError, match="started once"):
            playing.start()
        playing.stop()

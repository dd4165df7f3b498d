"""A synchronous trainer has the engine in a thread: it may block, leave, or raise."""

from __future__ import annotations

import threading

import pytest

from envs.guess_number import GuessNumber
from rollout import EngineConfig, EngineThread
from rollout.errors import ConfigError
from transports.embedded import MODEL_DIR

CONFIG = EngineConfig(max_tokens=16, concurrency=8)


def test_groups_come_to_a_plain_loop() -> None:
    """Every task's group comes, with its samples, and the thread is gone afterwards."""
    before = set(threading.enumerate())
    with EngineThread(CONFIG, GuessNumber) as engine:
        groups = list(engine.stream(GuessNumber().tasks(3, seed=0), rollouts_per_task=2))
        assert engine.stats().finished == 6
    assert sorted(group.task_index for group in groups) == [0, 1, 2]
    assert all(group.samples() for group in groups)
    assert "rollout-engine" not in {thread.name for thread in threading.enumerate()}
    for thread in set(threading.enumerate()) - before:  # anyio tells its workers to end, and does not join them
        thread.join(timeout=30)
        assert not thread.is_alive(), thread.name


def test_rollouts_go_on_while_the_trainer_computes() -> None:
    """While the consumer holds a group, the others are played: they are there when it comes back."""
    with EngineThread(CONFIG, GuessNumber) as engine:
        stream = engine.stream(GuessNumber().tasks(4, seed=0))
        next(stream)
        while engine.stats().finished < 4:
            pass  # the trainer computes, and never yields to a loop
        assert len(list(stream)) == 3


def test_leaving_early_ends_what_runs() -> None:
    """A trainer that breaks out of the loop leaves nothing running, and what had finished is kept."""
    with EngineThread(CONFIG, GuessNumber) as engine:
        stream = engine.stream(GuessNumber().tasks(30, seed=0))
        next(stream)
        stream.close()
        assert engine.stats().running == 0
        taken = 1 + sum(len(group.finished) for group in engine.untaken)
        assert taken == engine.stats().finished


def test_a_trainer_that_raises_closes_the_engine() -> None:
    """The trainer's own error comes out as it is."""
    engine = EngineThread(CONFIG, GuessNumber)

    def train() -> None:
        with engine:
            for _ in engine.stream(GuessNumber().tasks(30, seed=0)):
                _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        train()
    assert engine.stats().running == 0


def test_submissions_and_weights_work_from_a_thread() -> None:
    """Submit, collect and update block until they are done."""
    with EngineThread(CONFIG, GuessNumber) as engine:
        (task,) = GuessNumber().tasks(1, seed=0)
        result = engine.submit(task, rollouts=2)
        engine.submit(task)
        assert len(result().rollouts) == 2
        assert len(engine.collect(5)) == 1
        engine.pause("wait")
        engine.resume()
        engine.update_weights(1, MODEL_DIR)
        assert engine.stats().weight_version == "1"


def test_what_cannot_be_opened_is_raised_here() -> None:
    """An engine that cannot start raises from the with statement, and an engine that is not entered says so."""
    with pytest.raises(ConfigError, match="concurrency"), EngineThread(EngineConfig(concurrency=0), GuessNumber):
        pass
    with pytest.raises(RuntimeError, match="with EngineThread"):
        EngineThread(CONFIG, GuessNumber).collect(1)

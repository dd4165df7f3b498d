"""A synchronous trainer has the engine in a thread: it may block, leave, or raise."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys
import threading
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from envs.guess_number import GuessNumber
from rollout import Engine, EngineConfig, EngineThread, Env, Message, Rollout, Step, user
from rollout.errors import ConfigError, EngineClosed
from rollout.schedule.submissions import Submission
from rollout.thread import ThreadSubmission
from transports.embedded import MODEL_DIR
from transports.scripted import Held, ScriptedTransport, Stalled, reply

CONFIG = EngineConfig(max_tokens=16, concurrency=8)


class Short(Env):
    """One turn."""

    async def reset(self, task: Any) -> list[Message]:
        return [user("hello")]

    async def step(self, message: Message) -> Step:
        return Step(done=True, reward=1.0)


def scripted(*entries: Any) -> ScriptedTransport:
    return ScriptedTransport(entries)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Control-C is a KeyboardInterrupt here, whatever runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_submissions_and_weights_work_from_a_thread() -> None:
    """Submit, collect and update block until they are done."""
    with EngineThread(CONFIG, GuessNumber) as engine:
        (task,) = GuessNumber().tasks(1, seed=0)
        submission = engine.submit(task, rollouts=2)
        engine.submit(task)
        assert len(submission.result().rollouts) == 2
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


def test_the_loop_left_early_keeps_what_had_finished() -> None:
    """`break` is enough: `untaken` waits for the stream that ends, and is emptied by who takes it."""
    with EngineThread(CONFIG, GuessNumber) as engine:
        for _ in engine.stream(GuessNumber().tasks(30, seed=0)):
            break
        kept = engine.take_untaken()
        stats = engine.stats()
        assert stats.running == 0
        assert 1 + sum(len(group.finished) for group in kept) == stats.finished
        assert engine.untaken == []


@pytest.mark.slow
def test_a_stream_that_nobody_reads_may_be_dropped_in_any_thread() -> None:
    """Even in the engine's own, where waiting for its end would never end."""
    with EngineThread(CONFIG, GuessNumber) as engine:
        held = [engine.stream(GuessNumber().tasks(30, seed=0))]
        next(held[0])

        async def drop() -> None:
            held.clear()

        engine._runner.call(drop)
        assert engine.untaken is not None
        assert engine.stats().running == 0
        assert len(list(engine.stream(GuessNumber().tasks(2, seed=0)))) == 2


def test_a_stream_is_read_by_one_thread() -> None:
    """A second one is told, and the first goes on; each may have a stream of its own."""
    held = Held(reply("x"))
    said: list[BaseException] = []
    with EngineThread(EngineConfig(transport="scripted", max_turns=1), Short, transport=scripted(held)) as engine:
        stream = engine.stream([{"n": 0}])

        def read() -> None:
            try:
                next(stream)
            except BaseException as error:
                said.append(error)
            engine._engine._streams.runs[0].wake()
            engine._runner.now(held.release)

        first = threading.Thread(target=next, args=[stream])
        first.start()
        transport: Any = engine._engine._given
        engine._runner.call(lambda: transport.wait_for(1))
        second = threading.Thread(target=read)
        second.start()
        second.join(30)
        first.join(30)
        assert [type(error) for error in said] == [RuntimeError]
        assert "another thread" in str(said[0])


def test_control_c_comes_out_and_loses_nothing(interruptible: None) -> None:
    """A KeyboardInterrupt where the trainer waits; what had finished is in `untaken`, and the thread is gone."""
    transport = scripted(reply("x"), Stalled(), Stalled(), Stalled())
    engine = EngineThread(EngineConfig(transport="scripted", concurrency=4), Short, transport=transport)

    async def interrupt(rollout: Rollout) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def train() -> None:
        with engine:
            for _ in engine.stream([{"n": 0}, {"n": 1}], rollouts_per_task=2, on_rollout=interrupt):
                raise AssertionError("no group is complete")

    with pytest.raises(KeyboardInterrupt):
        train()
    stats = engine.stats()
    assert sum(len(group.finished) for group in engine.untaken) == stats.finished == 1
    assert [stats.running, transport.closed] == [0, True]
    assert "rollout-engine" not in {thread.name for thread in threading.enumerate()}


def test_what_had_finished_can_be_taken_when_it_is_closed() -> None:
    """By its submission, by `collect`, from `untaken`; what else is asked for says that the engine is closed."""
    transport = scripted(*[reply("x")] * 4)
    with EngineThread(EngineConfig(transport="scripted", max_turns=1), Short, transport=transport) as engine:
        first, second = engine.submit({"n": 0}), engine.submit({"n": 1})
        stream = engine.stream([{"n": 2}, {"n": 3}])
        next(stream)
        while engine.stats().finished < 4:
            pass
    assert first.result().task["n"] == 0
    assert [group.task["n"] for group in engine.collect(9)] == [1]
    assert second.result().task["n"] == 1
    assert len(engine.take_untaken()) == 1
    for call in (lambda: next(stream), lambda: engine.submit({"n": 4}), lambda: engine.update_weights(1)):
        with pytest.raises(EngineClosed):
            call()
    stream.close()
    with pytest.raises(RuntimeError, match="entered once"):
        engine.__enter__()


@pytest.mark.slow
def test_an_engine_that_is_never_left_keeps_no_process_from_ending() -> None:
    """A script that forgets to close it ends all the same."""
    script = """
from rollout import EngineConfig, EngineThread
from envs.guess_number import GuessNumber
engine = EngineThread(EngineConfig(max_tokens=16, concurrency=8), GuessNumber)
engine.__enter__()
stream = engine.stream(GuessNumber().tasks(30, seed=0))
print(next(stream))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert [ended.returncode, ended.stdout[:6]] == [0, "<Group"]


class Other(Short):
    """Another environment: its reward tells."""

    async def step(self, message: Message) -> Step:
        return Step(done=True, reward=5.0)


def test_streams_and_submissions_may_play_another_environment() -> None:
    """As those of an `Engine`."""
    transport = scripted(*[reply("x")] * 9)
    with EngineThread(EngineConfig(transport="scripted"), Short, transport=transport) as engine:
        groups = list(engine.stream([{"n": 0}, {"n": 1}], env=Other)) + list(engine.stream([{"n": 0}]))
        submission = engine.submit({"n": 2}, env=Other)
        assert submission.result().rewards == [5.0]
        assert (submission.task_index, submission.done) == (0, True)
    assert [group.rewards for group in groups] == [[5.0], [5.0], [1.0]]


def test_a_submission_can_be_cancelled_from_a_thread() -> None:
    """Its result has what was played; calling it, as it was done until now, is said to be old."""
    with EngineThread(EngineConfig(transport="scripted"), Short, transport=scripted(Stalled())) as engine:
        submission = engine.submit({"n": 0})
        submission.cancel()
        assert submission.result().finished == []
        with pytest.warns(DeprecationWarning, match="submission.result"):
            submission()


def public(kind: type) -> dict[str, Any]:
    """What users see of a class: its methods' parameters by name, kind, type and default; properties' types."""
    found: dict[str, Any] = {}
    for name, member in vars(kind).items():
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(member, property):
            found[name] = typing.get_type_hints(member.fget)["return"]
        elif inspect.isfunction(member):
            found[name] = list(inspect.signature(member).parameters.values())
    return found


def test_an_engine_thread_has_what_an_engine_has() -> None:
    """The same methods, with the same parameters and defaults, and the same properties."""
    assert public(EngineThread) == public(Engine)
    assert public(ThreadSubmission).keys() == public(Submission).keys()


def test_what_left_the_class_is_still_found() -> None:
    """For a release, with a warning; it is in nobody's list of methods."""
    with EngineThread(EngineConfig(transport="scripted"), Short, transport=scripted()) as engine:
        with pytest.warns(DeprecationWarning, match="EngineThread.engine is the engine's own business"):
            assert isinstance(engine.engine, Engine)  # type: ignore[attr-defined]
        with pytest.raises(AttributeError, match="'EngineThread' object has no attribute 'nothing'"):
            engine.nothing  # type: ignore[attr-defined]  # noqa: B018

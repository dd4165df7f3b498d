"""A logger that raises, hangs or is slow costs what it was to be told, and nothing else."""

from __future__ import annotations

import logging
import threading

import anyio
import pytest

from rollout import Group
from rollout.errors import EngineClosed, ServerError
from rollout.observe import log_thread
from rollout.observe.log_thread import LogThread, LogThreads
from rollout.observe.stats import Stats
from tests.rollout.observe.test_loggers import Kept, group
from tests.rollout.test_engine import collect, engine


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.event for record in caplog.records if record.levelno == logging.WARNING]  # type: ignore[attr-defined]


class Held(Kept):
    """Is at its first group until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def on_group(self, group: Group, step: int, evaluation: bool) -> None:
        self.begun.set()
        self.go.wait(60)
        super().on_group(group, step, evaluation)


class Raises(Kept):
    """Raises at every group, as a tracker whose server is gone does."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def on_group(self, group: Group, step: int, evaluation: bool) -> None:
        raise self.error


async def test_all_that_was_told_comes_in_order_and_then_the_end() -> None:
    """Closing waits for it."""
    threads, logger = LogThreads(), Kept()
    threads.add(logger)
    for n in range(100):
        threads.on_group(group(float(n)), evaluation=False)
    threads.on_stats(Stats(turns=7))
    await threads.aclose()
    assert [step for step, _ in logger.told] == [*range(1, 101), 100]
    assert [values["reward/mean"] for _, values in logger.told[:-1]] == [float(n) for n in range(100)]
    assert logger.told[-1][1]["engine/turns"] == 7
    assert logger.closed


@pytest.mark.parametrize("error", [OSError("no route to the server"), SystemExit(1), KeyboardInterrupt()])
async def test_what_it_raises_is_said_once(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """It is called again, and at the end it is said how much it missed. Nothing of it comes out."""
    threads, logger = LogThreads(), Raises(error)
    threads.add(logger)
    for _ in range(10):
        threads.on_group(group(1.0), evaluation=False)
    threads.on_stats(Stats())
    await threads.aclose()
    assert events(caplog) == ["logger_raised", "logger_missed"]
    assert caplog.records[-1].fields == {"logger": "Raises", "dropped": 0, "failed": 10}  # type: ignore[attr-defined]
    assert len(logger.told) == 1
    assert logger.closed


async def test_a_password_in_what_it_raises_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Nor is the traceback, which would quote it; another one's traceback is."""
    for error in (ConnectionError("no answer of http://me:hunter2@tracker"), OSError("disk full")):
        threads = LogThreads()
        threads.add(Raises(error))
        threads.on_group(group(1.0), evaluation=False)
        await threads.aclose()
    assert "no answer of http://tracker" in caplog.text
    assert "hunter2" not in caplog.text
    assert "Traceback" in caplog.text


def test_what_waits_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Telling never waits; what comes beyond is dropped, counted, and said once; then it goes on."""
    logger = Held()
    thread = LogThread(logger, most_waiting=5)
    thread.tell(lambda one: one.on_group(group(0.0), 0, False))
    assert logger.begun.wait(60)
    for step in range(1, 21):
        thread.tell(lambda one, step=step: one.on_group(group(1.0), step, False))  # type: ignore[misc]
    assert thread.dropped == 15
    logger.go.set()
    thread.close(60)
    assert [step for step, _ in logger.told] == [0, 1, 2, 3, 4, 5]
    assert events(caplog) == ["logger_is_behind", "logger_missed"]


async def test_one_that_hangs_is_left_behind(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine ends, the loop turns meanwhile, and the others have all that they were told."""
    monkeypatch.setattr(log_thread, "CLOSE_S", 0.2)
    threads, hangs, well = LogThreads(), Held(), Kept()
    threads.add(hangs)
    threads.add(well)
    threads.on_group(group(1.0), evaluation=False)
    turned = 0
    async with anyio.create_task_group() as tasks:

        async def turn() -> None:
            nonlocal turned
            while True:
                turned += 1
                await anyio.sleep(0.01)

        tasks.start_soon(turn)
        await threads.aclose()
        tasks.cancel_scope.cancel()
    assert turned > 3
    assert len(well.told) == 1
    assert well.closed
    assert not hangs.closed
    assert events(caplog) == ["logger_hangs"]
    hangs.go.set()


async def test_an_engine_tells_its_loggers_of_every_group() -> None:
    """Training's and evaluations', those that the stream does not keep, those of submissions; and where it stands."""
    running, _ = engine(concurrency=2)
    logger = Kept()
    async with running:
        running.log_to(logger)
        await collect(running, 3, rollouts_per_task=2, keep=lambda group: group.task_index != 1)
        await collect(running, 1, evaluation=True)
        await (await running.submit({"n": 9})).result()
    assert [step for step, _ in logger.told] == [1, 2, 3, 4, 5, 5]
    assert [("eval/reward/mean" in values, "reward/mean" in values) for _, values in logger.told] == [
        *[(False, True)] * 3,
        (True, False),
        (False, True),
        (False, False),
    ]
    assert logger.told[-1][1]["engine/finished"] == 8
    assert logger.closed


async def test_where_an_engine_stands_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while no group comes."""
    monkeypatch.setattr("rollout.observe.log_thread.LOG_EVERY_S", 0.01)
    running, _ = engine()
    logger = Kept()
    running.log_to(logger)
    async with running:
        with anyio.fail_after(60):
            while len(logger.told) < 3:  # noqa: ASYNC110  # another thread has the list
                await anyio.sleep(0.01)
    assert all("engine/turns" in values for _, values in logger.told)


async def test_loggers_are_closed_where_the_engine_cannot_begin() -> None:
    """And a closed engine takes none."""
    running, transport = engine()
    transport._connect_error = ServerError("gone")
    logger = Kept()
    running.log_to(logger)
    with pytest.raises(ServerError, match="gone"):
        await running.__aenter__()
    assert logger.closed
    await running.__aexit__()
    with pytest.raises(EngineClosed):
        running.log_to(Kept())

"""User code that a run waits for is said, and broken off where it blocks the loop of a process that is ours."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator

import anyio
import pytest

from rollout.log import handled_by
from rollout.process import blocked
from rollout.process.blocked import LoopBlocked, Watch, answers, broken_by, place_on_loop
from tests.log_kit import capture_logs

MOST_S = 60.0


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_S", "ANSWER_S", "TRY_S"):
        monkeypatch.setattr(blocked, name, 0.01)


class Fake:
    """Lets go of what blocks once it was told to, so often."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.let_go = threading.Event()
        self.errors: list[Exception] = []
        self.line = ""

    def interrupt(self, error: Exception) -> None:
        self.errors.append(error)
        if self.at == "interrupt":
            self.let_go.set()

    def abandon(self, line: str) -> None:
        self.line = line
        self.let_go.set()


@pytest.fixture
def breaker(request: pytest.FixtureRequest) -> Iterator[Fake]:
    fake = Fake(request.param)
    with broken_by(fake):
        yield fake


async def test_what_is_waited_for_is_said_again_and_again() -> None:
    """With the place where it stands, after ever longer times; no more once it is over."""
    asked, loop = asyncio.Queue[None](), asyncio.get_running_loop()

    def where() -> str:
        loop.call_soon_threadsafe(asked.put_nowait, None)
        return " (env.py, line 7, in setup)"

    with capture_logs() as logs, anyio.fail_after(MOST_S), Watch("Pool.setup", where=where):
        for _ in range(3):
            await asked.get()
    assert [entry["event"] for entry in logs][:2] == ["waiting for Pool.setup, 0 s (env.py, line 7, in setup)"] * 2
    assert asked.qsize() <= 1


async def test_where_it_stands_may_be_unsayable() -> None:
    """Frames of another thread may go on while they are looked at: the word is said without them."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def where() -> str:
        if said := [entry for entry in logs if entry["event"] == "waiting for X, 0 s"]:
            loop.call_soon_threadsafe(asked.set)
        raise RuntimeError(said)

    with capture_logs() as logs, anyio.fail_after(MOST_S), Watch("X", where=where):
        await asked.wait()


@pytest.mark.parametrize("breaker", ["interrupt"], indirect=True)
async def test_what_awaits_is_not_broken_off(breaker: Fake) -> None:
    """It has a deadline of its own: only a loop that does not answer is blocked."""
    times, loop = asyncio.Queue[None](), asyncio.get_running_loop()

    def where() -> str:
        loop.call_soon_threadsafe(times.put_nowait, None)
        return ""

    with Watch("X", limit_s=0.01, where=where):
        for _ in range(3):
            await times.get()
    assert breaker.errors == []


@pytest.mark.parametrize("breaker", ["interrupt"], indirect=True)
async def test_what_blocks_the_loop_is_interrupted(breaker: Fake) -> None:
    """Once its limit is over, with an error that says what it did."""
    with Watch("X", limit_s=0.02):
        assert breaker.let_go.wait(MOST_S)  # what blocks
    assert [(type(error), str(error)) for error in breaker.errors[:1]] == [
        (LoopBlocked, "it blocked the event loop for 0.02 s")
    ]


@pytest.mark.parametrize("breaker", ["abandon"], indirect=True)
async def test_what_swallows_that_is_abandoned(breaker: Fake) -> None:
    """After three tries, with a line that names it and where it stands."""
    with Watch("Pool.setup to close", limit_s=0.01):
        assert breaker.let_go.wait(MOST_S)  # what blocks
    assert len(breaker.errors) == blocked.TRIES
    assert breaker.line.startswith("Pool.setup to close blocks the event loop (test_blocked.py, line ")
    assert breaker.line.endswith(", and does not end when it is interrupted")


async def test_in_somebody_elses_program_it_is_said_once() -> None:
    """Nothing here may raise in its main thread, or end it."""
    let_go, said = threading.Event(), list[str]()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            if len(said) > 5:
                let_go.set()

    with handled_by(Handler(), logging.WARNING), Watch("X", limit_s=0.01):
        assert let_go.wait(MOST_S)  # what blocks
    (line,) = [line for line in said if line.startswith("X blocks the event loop (test_blocked.py, ")]
    assert line.endswith(", and nothing here can end that: await in it, or use a thread")


async def test_a_place_is_of_what_the_loop_has_called() -> None:
    """Not of the program that has started it."""
    assert "in test_a_place_is_of" in place_on_loop(threading.get_ident())
    assert place_on_loop(-1) == ""


def test_a_loop_that_is_closed_blocks_nothing() -> None:
    """Nobody waits for it."""
    loop = asyncio.new_event_loop()
    loop.close()
    assert answers(loop)

"""An event loop in a thread: who calls it is never left waiting, and it leaves no thread behind that it could end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from rollout.errors import EngineClosed, RolloutError
from rollout.loop.thread import LoopThread


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Control-C is a KeyboardInterrupt here, whatever runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def control_c() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@contextlib.asynccontextmanager
async def opened(entered: Any = None, left: Any = None) -> AsyncIterator[None]:
    if entered is not None:
        await entered()
    yield
    if left is not None:
        await left()


def threads_named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


async def forever() -> None:
    await asyncio.sleep(3600)


async def raises(error: BaseException) -> None:
    raise error


def test_calls_are_made_in_the_loop() -> None:
    """They give and raise what the function does; afterwards the thread is gone, and calls say so."""

    async def where() -> int:
        return threading.get_ident()

    with LoopThread(opened(), name="one") as thread:
        assert thread.call(where) != threading.get_ident()
        for error in (ValueError("a"), SystemExit(2), KeyboardInterrupt()):
            with pytest.raises(type(error)):
                thread.call(functools.partial(raises, error))
        assert thread.call(where)
        assert thread.open
    assert not threads_named("one")
    with pytest.raises(EngineClosed):
        thread.call(where)


def test_what_cannot_be_opened_is_raised() -> None:
    """And the thread has ended."""
    with pytest.raises(OSError, match="down"), LoopThread(opened(lambda: raises(OSError("down"))), name="two"):
        pass
    assert not threads_named("two")


def test_what_closing_raises_is_raised() -> None:
    """It is the caller's to know."""
    with pytest.raises(OSError, match="full"), LoopThread(opened(None, lambda: raises(OSError("full"))), name="three"):
        pass
    assert not threads_named("three")


def test_an_interrupted_call_is_cancelled_before_the_interrupt_comes_out() -> None:
    """Nothing of it runs on unseen, and the loop takes further calls."""
    ended: list[str] = []

    async def interrupted() -> None:
        control_c()
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            ended.append("call")

    with LoopThread(opened(), name="four") as thread:
        with pytest.raises(KeyboardInterrupt):
            thread.call(interrupted)
        assert ended == ["call"]
        assert thread.call(lambda: asyncio.sleep(0, "on")) == "on"


def test_a_result_that_came_all_the_same_is_not_lost() -> None:
    """A call that could not be cancelled any more gives its result to whom the caller named."""
    unclaimed: list[str] = []

    async def unstoppable() -> str:
        control_c()
        with contextlib.suppress(asyncio.CancelledError):
            await forever()
        return "result"

    with LoopThread(opened(), name="five") as thread:
        with pytest.raises(KeyboardInterrupt):
            thread.call(unstoppable, unclaimed=unclaimed.append)
        assert unclaimed == ["result"]


def test_an_interrupt_while_it_opens_ends_it() -> None:
    """A connection that never comes is not waited for."""

    async def connect() -> None:
        control_c()
        await forever()

    with pytest.raises(KeyboardInterrupt), LoopThread(opened(connect), name="six"):
        pass
    assert not threads_named("six")


def test_an_interrupt_while_it_closes_ends_it() -> None:
    """What takes long to close is cancelled."""

    async def close() -> None:
        control_c()
        await forever()

    with pytest.raises(KeyboardInterrupt), LoopThread(opened(None, close), name="seven"):
        pass
    assert not threads_named("seven")


def test_what_does_not_end_is_not_waited_for() -> None:
    """Whatever hangs in the loop's thread, an interrupt comes out, and the process may end: it is a daemon."""
    goes_on = threading.Event()

    async def hang() -> None:
        control_c()
        goes_on.wait(60)

    try:
        with pytest.raises(KeyboardInterrupt), LoopThread(opened(None, hang), name="eight", grace_s=0.1):
            pass
        (thread,) = threads_named("eight")
        assert thread.daemon
    finally:
        goes_on.set()
    thread.join(30)
    assert not thread.is_alive()


def test_whoever_waits_is_told_when_the_loop_dies() -> None:
    """A callback that exits ends the loop: calls under way, later ones and leaving all say what ended it."""

    def die() -> None:
        raise SystemExit(3)

    def wait() -> None:
        with LoopThread(opened(), name="nine") as thread:
            thread.tell(die)
            with pytest.raises(RolloutError):
                thread.call(forever)

    with pytest.raises(RolloutError, match="ended by SystemExit"):
        wait()
    assert not threads_named("nine")


def test_calls_under_way_end_when_it_closes() -> None:
    """A second thread that waits for something is told that it was closed."""
    raised: list[BaseException] = []
    begun = threading.Event()

    async def wait() -> None:
        begun.set()
        await forever()

    def call(thread: LoopThread) -> None:
        try:
            thread.call(wait)
        except BaseException as error:
            raised.append(error)

    with LoopThread(opened(), name="ten") as thread:
        other = threading.Thread(target=call, args=[thread])
        other.start()
        assert begun.wait(30)
    other.join(30)
    assert [type(error) for error in raised] == [EngineClosed]


def test_it_does_not_wait_for_itself() -> None:
    """A call from the loop's own thread would never end, and says so."""

    async def within() -> None:
        thread.call(forever)

    with LoopThread(opened(), name="eleven") as thread, pytest.raises(RuntimeError, match="own thread"):
        thread.call(within)


FORKS = """
import asyncio, contextlib, os, warnings
from rollout.errors import EngineClosed
from rollout.loop.thread import LoopThread
warnings.simplefilter("ignore")  # 3.12 says that forking with threads is unwise
@contextlib.asynccontextmanager
async def opened():
    yield
async def five():
    return 5
with LoopThread(opened(), name="one") as thread:
    assert thread.call(five) == 5
    child = os.fork()
    if child == 0:
        thread.tell(lambda: print("told"))
        try:
            thread.call(five)
        except EngineClosed as error:
            print(thread.open, error, flush=True)
    else:
        os.waitpid(child, 0)
        print(thread.open, thread.call(five), flush=True)
if child == 0:
    print("left", flush=True)
    os._exit(0)
"""


@pytest.mark.slow
def test_a_forked_process_does_not_wait_for_a_thread_that_it_does_not_have() -> None:
    """Such as a data loader's: it is told so at once, leaves the block, and the engine's own process goes on."""
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=300)
    said = (
        "this process was forked from the engine's, and has no engine: ask the process that has it, or start this one "
        "by `spawn` and make another"
    )
    assert (done.stdout.splitlines(), done.stderr) == ([f"False {said}", "left", "True 5"], "")

"""A call in a thread costs at most itself: whatever the function raises, and however long it hangs."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import subprocess
import sys
import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from rollout.process.threads import ContainedError, Threads, ThreadsExhausted


class Gate:
    """A function that hangs until it is let go, and says when it has begun."""

    def __init__(self, value: Any = None) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()
        self._value = value

    def __call__(self) -> Any:
        self.begun.set()
        self.let_go.wait(30)
        if isinstance(self._value, BaseException):
            raise self._value
        return self._value

    async def has_begun(self) -> None:
        while not self.begun.is_set():
            await anyio.lowlevel.checkpoint()


async def abandoned(threads: Threads, gate: Gate) -> Any:
    """A call that was cancelled while it ran."""
    call = threads.call(gate)
    async with anyio.create_task_group() as group:
        group.start_soon(call.result)
        await gate.has_begun()
        group.cancel_scope.cancel()
    return call


async def test_a_function_runs_in_a_daemon_thread_with_its_callers_context() -> None:
    """Nobody joins the thread at the end, and context variables are as where it was called."""
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(3)
    threads = Threads(2)
    seen = await threads.run(lambda a: (threading.current_thread().daemon, variable.get(), a), 7)
    assert seen == (True, 3, 7)


async def test_a_thread_is_used_again() -> None:
    """A second call needs no second thread."""
    threads = Threads(2)
    assert await threads.run(threading.get_ident) == await threads.run(threading.get_ident)


async def test_a_loop_of_its_own_can_be_run_in_the_thread() -> None:
    """A plain function may run what is asynchronous by itself: it does not see the loop of the engine."""

    async def answer() -> int:
        await anyio.lowlevel.checkpoint()
        return 4

    threads = Threads(1)
    assert await threads.run(anyio.run, answer) == 4
    assert await threads.run(lambda: asyncio.run(answer())) == 4


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        StopIteration(4),
        StopAsyncIteration(),
        BaseExceptionGroup("two", [SystemExit(1), ValueError()]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_would_end_more_than_the_call_is_contained(error: BaseException) -> None:
    """It comes out as an ordinary exception that holds it."""
    gate = Gate(error)
    gate.let_go.set()
    with pytest.raises(ContainedError) as raised:
        await Threads(1).run(gate)
    assert raised.value.error is raised.value.__cause__ is error


async def test_an_ordinary_exception_comes_out_as_it_is() -> None:
    """With its traceback into the function."""
    with pytest.raises(ZeroDivisionError) as raised:
        await Threads(1).run(lambda: 1 // 0)
    assert raised.traceback[-1].path == raised.traceback[0].path


async def test_no_more_run_at_once_than_there_are_slots() -> None:
    """Those that come later wait for their turn, in their order."""
    threads, gates = Threads(2), [Gate(i) for i in range(4)]
    calls = [asyncio.create_task(threads.run(gate)) for gate in gates]
    await gates[0].has_begun()
    await gates[1].has_begun()
    assert not gates[2].begun.is_set()
    gates[1].let_go.set()
    await gates[2].has_begun()
    assert not gates[3].begun.is_set()
    for gate in gates:
        gate.let_go.set()
    assert await asyncio.gather(*calls) == [0, 1, 2, 3]


async def test_an_abandoned_call_gives_its_slot_back() -> None:
    """Another thread takes its place, and what hangs is counted for as long as it hangs."""
    threads, gate = Threads(1), Gate("late")
    call = await abandoned(threads, gate)
    assert (call.abandoned, threads.abandoned) == (True, 1)
    assert await threads.run(lambda: "next") == "next"
    gate.let_go.set()
    assert await call.returned() == "late"
    assert threads.abandoned == 0


async def test_what_an_abandoned_call_raises_is_seen_by_who_waits_for_it() -> None:
    """And by nobody else."""
    threads, gate = Threads(1), Gate(SystemExit(2))
    call = await abandoned(threads, gate)
    gate.let_go.set()
    with pytest.raises(ContainedError):
        await call.returned()


async def test_who_is_cancelled_in_line_leaves_it() -> None:
    """A call that was never begun is not made, and takes no slot."""
    threads, first, second = Threads(1), Gate(), Gate()
    running = asyncio.create_task(threads.run(first))
    await first.has_begun()
    call = threads.call(second)
    waiting = asyncio.create_task(call.result())
    await anyio.lowlevel.checkpoint()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert (call.begun, call.abandoned) == (False, False)
    first.let_go.set()
    await running
    assert await threads.run(lambda: 1) == 1
    assert not second.begun.is_set()


async def test_who_is_cancelled_as_its_turn_comes_hands_it_on() -> None:
    """No slot is lost between the one who gives it and the one who no longer wants it."""
    threads, first = Threads(1), Gate()
    running = asyncio.create_task(threads.run(first))
    await first.has_begun()
    waiting = asyncio.create_task(threads.run(lambda: 1))
    await anyio.lowlevel.checkpoint()
    running.cancel()  # abandons, which hands the slot to the one that waits
    await asyncio.wait([running])
    waiting.cancel()
    await asyncio.wait([waiting])
    assert await threads.run(lambda: 2) == 2
    first.let_go.set()


async def test_too_many_abandoned_calls_are_told_once() -> None:
    """The error says how many hang, and which setting allows how many."""
    told: list[ThreadsExhausted] = []
    threads, gates = Threads(1, most_abandoned=1, on_exhausted=told.append), [Gate() for _ in range(3)]
    for gate in gates:
        await abandoned(threads, gate)
    assert len(told) == 1
    assert "2 calls" in str(told[0])
    assert "max_abandoned_threads" in str(told[0])
    for gate in gates:
        gate.let_go.set()


async def test_an_exception_that_a_library_sets_too_late_does_not_cost_the_thread() -> None:
    """What ends calls that take too long sets an exception in their thread, which may have returned by then."""
    threads = Threads(1)
    ident = await threads.run(threading.get_ident)
    set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
    for _ in range(20):
        set_exception(ctypes.c_ulong(ident), ctypes.py_object(KeyboardInterrupt))
        with contextlib.suppress(ContainedError):  # it may hit the next call, which is the caller's own fault
            assert await threads.run(threading.get_ident) == ident
    assert repr(threads) == "<Threads 0 of 1 busy, 0 waiting, 0 abandoned>"


async def test_closed_threads_end() -> None:
    """Idle ones at once, a hanging one when its call returns."""

    def ours() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "rollout-call"}

    before, threads, gate = ours(), Threads(2), Gate()
    await abandoned(threads, gate)
    await threads.run(lambda: None)
    assert len(ours() - before) == 2
    threads.close()
    gate.let_go.set()
    while ours() - before:  # noqa: ASYNC110  # threads say nothing when they end
        await anyio.sleep(0.001)


def test_a_call_may_return_when_the_loop_is_gone() -> None:
    """It is still counted rightly, and nothing is printed."""
    threads, gate = Threads(1), Gate()
    call = asyncio.run(abandoned(threads, gate))
    assert threads.abandoned == 1
    thread = next(thread for thread in threading.enumerate() if thread.name == "rollout-call" and not call.done)
    gate.let_go.set()
    while not call.done:
        thread.join(0.001)
    assert threads.abandoned == 0


@pytest.mark.slow
def test_a_process_ends_with_a_call_that_hangs() -> None:
    """Nobody joins the thread."""
    program = (
        "import asyncio, time\n"
        "from rollout.process.threads import Threads\n"
        "async def main():\n"
        "    threads = Threads(1)\n"
        "    try:\n"
        "        await asyncio.wait_for(threads.run(time.sleep, 600), 0.05)\n"
        "    except TimeoutError:\n"
        "        print(threads)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "<Threads 0 of 1 busy, 0 waiting, 1 abandoned>\n"
    assert not done.stderr

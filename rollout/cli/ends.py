"""How the command ends: by its own result, by signals, and whatever threads still hang.

Signals. The first one lets what runs end and begins nothing new; the second ends it at once; the third leaves. That is
counted over the whole life of the command, from connecting to the last write. SIGTERM and SIGHUP count
as SIGINT does. Handlers are Python's own, not the event loop's: where an environment blocks the loop, that is said, the
second one is raised where it stands, and the third one still leaves.

    with signals.meaning(first=engine.stop_admitting, second=engine.cancel):
        ...

The end. Once a command has its status, nothing keeps it: a task that will not be cancelled, a thread that hangs in the
executor of asyncio or in the user's own, an exit hook that waits. What ends by itself within a few seconds may;
then how many threads hang is said, and the process leaves with its status. Python cannot end a thread.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import Callable, Iterator
from os import _exit  # before user code's is contained: see `rollout.process.exits`
from types import FrameType
from typing import Any

from rollout.process.blocked import ANSWER_S, Interrupted, answers, place_on_loop
from rollout.process.user_tasks import unending

#: A process that is told together with its group is told twice (coreutils' `timeout`): that is one signal.
ONE_SIGNAL_S = 0.05

#: Once a command has its status: how long the loop's tasks and threads may take to end, and exit hooks after that.
LEAVE_S = 3.0
HOOKS_S = 30.0

#: Timers that a process may set, whose signals would end it without a word.
_TIMERS = (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)

#: How long user code that blocks the event loop has to end after a signal, where nothing else is said; and what blocks
#: it for so long after that is broken off, too.
PATIENCE_S = 5.0
BLOCKED_S = 5.0

_STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Signals:
    """The signals that stop a command, counted. Enter it in the main thread; elsewhere it does nothing."""

    def __init__(
        self, on_interrupt: Callable[[], None] = lambda: None, say: Callable[[str], None] = lambda line: None
    ) -> None:
        """`on_interrupt` is called where a signal has no other meaning than to interrupt; `say` says a line."""
        self.count = 0
        """Signals so far; those that came together are one."""
        self.too_late = False
        """Whether the work is done and only the process has to end: what comes now stops nothing."""
        self._last = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._loop: AbstractEventLoop | None = None
        self._first: Callable[[], None] | None = None
        self._second: Callable[[], None] | None = None
        self._on_interrupt = on_interrupt
        self._say = say
        self._patience_s = PATIENCE_S
        self._unanswered = False
        """Whether the loop has not yet called what the last signal means."""
        self._error: Exception | None = None
        """What is to be raised in the main thread."""

    def __repr__(self) -> str:
        return f"<Signals {self.count} so far>"

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _STOPS:
                before = signal.getsignal(number)
                if number is not signal.SIGINT and before is signal.SIG_IGN:
                    continue  # nohup asks for that
                self._before[number] = before
            self.hold()
            for number in _TIMERS:
                if signal.getsignal(number) == signal.SIG_DFL:
                    self._before[number] = signal.SIG_DFL
                    signal.signal(number, self._alarmed)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)

    @property
    def age_s(self) -> float:
        """Seconds since the last one came: a loop that was blocked hears of it late."""
        return time.monotonic() - self._last

    def hold(self) -> None:
        """Takes the signals back where a library or an environment has set handlers of its own."""
        for number in self._before:
            if number in _STOPS and signal.getsignal(number) != self._came:
                signal.signal(number, self._came)

    @contextlib.contextmanager
    def meaning(
        self,
        first: Callable[[], None],
        second: Callable[[], None] | None = None,
        *,
        patience_s: float = PATIENCE_S,
        missed: bool = True,
    ) -> Iterator[None]:
        """What the signals do meanwhile; called on the running loop. Without `second` it is a KeyboardInterrupt.

        User code that blocks the loop has `patience_s` to end after the first. `missed`: one that came before counts.
        """
        before = self._loop, self._first, self._second, self._patience_s
        self._loop, self._first, self._second, self._patience_s = get_running_loop(), first, second, patience_s
        if self.count and missed:  # it came between two meanings
            self._loop.call_soon(first)
        try:
            yield
        finally:
            self._loop, self._first, self._second, self._patience_s = before

    def interrupt(self, error: Exception) -> None:
        """Raises an error in the main thread, wherever that stands in Python code. From another thread."""
        self._error = error
        if signal.getsignal(signal.SIGINT) == self._came:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _came(self, number: int, frame: FrameType | None) -> None:
        if (error := self._error) is not None:
            self._error = None
            raise error
        now = time.monotonic()
        if self.count and now - self._last < ONE_SIGNAL_S:
            return
        self._last = now
        self.count += 1
        if self.count > 2:
            if os.isatty(2):
                os.write(2, b"\x1b[?25h")  # the progress line hides the cursor
            _exit(1)
        if self.too_late:
            return
        callback = self._first if self.count == 1 else self._second
        if callback is None or self._loop is None or self._loop.is_closed():
            self._on_interrupt()
            raise KeyboardInterrupt
        blocked, self._unanswered = self._unanswered, True
        self._loop.call_soon_threadsafe(self._answer, callback)
        if not blocked:
            timer = threading.Timer(ANSWER_S, self._see_to_it)
            timer.daemon, timer.name = True, "rollout-ending"
            timer.start()
        elif frame is not None and place_on_loop(frame):  # nothing of ours is broken off
            raise _interrupted()

    def _answer(self, callback: Callable[[], None]) -> None:
        self._unanswered = False
        callback()

    def _see_to_it(self) -> None:
        """From a moment after a signal on, in a thread: does the loop do what it is told?"""
        main, began, patience_s = threading.main_thread().ident or 0, time.monotonic(), self._patience_s
        if self._unanswered:
            what = f"what blocks the event loop{place_on_loop(main)}"
            self._say(f"stopping: {what} has {patience_s:g} s to end; control-C again breaks it off")
        free = began
        while (loop := self._loop) is not None:
            if answers(loop):
                free = time.monotonic()
                time.sleep(ANSWER_S)
            elif time.monotonic() - max(free, began + patience_s - BLOCKED_S) > BLOCKED_S and place_on_loop(main):
                self.interrupt(_interrupted())
                free = time.monotonic()

    def _alarmed(self, number: int, frame: FrameType | None) -> None:
        """An environment has set a timer without a handler, which would end the process."""
        self._say(f"{signal.Signals(number).name} came, which nothing here asked for: it is ignored")


def _interrupted() -> Interrupted:
    return Interrupted("it blocked the event loop when the command was stopped")


class Ending:
    """Sees to it that the process ends. For a process that is ours: the command's."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.status: int | None = None
        """What the process ends with, once it is known."""
        self._say = say
        self._said = False
        self._saying = threading.Lock()
        self._hooks_began, self._hooks_due, self._hooks_done = (threading.Event() for _ in range(3))
        atexit.register(self._leave_behind_hooks)  # the first to be registered is the last to be called

    def settle(self, status: int) -> None:
        """The command has done its work: from now on it ends in bounded time. The last status counts."""
        begun, self.status = self.status is not None, status
        if not begun:
            # Both now: from 3.12 on Python starts no thread any more once it waits for those that hang.
            for target in (self._watch, self._run_hooks):
                threading.Thread(target=target, name="rollout-ending", daemon=True).start()

    def bound(self, seconds: float, line: str, status: int = 1) -> None:
        """Unless the command has its status by then, it ends with this one and a line."""

        def give_up() -> None:
            if self.status is None:
                self._say(line)
                self.status = status
                self._leave_now()

        timer = threading.Timer(seconds, give_up)
        timer.daemon, timer.name = True, "rollout-ending"
        timer.start()

    def leave(self, status: int) -> None:
        """The last thing that the command does."""
        self.settle(status)
        self._say_hanging(_ours_that_hang())
        atexit.register(self._hooks_began.set)  # the last to be registered is the first to be called
        sys.exit(status)

    def _watch(self) -> None:
        if self._hooks_began.wait(LEAVE_S):
            time.sleep(HOOKS_S)
        else:
            hanging = _that_hang()
            self._say_hanging(hanging)
            if not hanging:
                self._say("tasks that an environment left do not end when they are cancelled, and are left behind")
            self._hooks_due.set()
            self._hooks_done.wait(HOOKS_S)
        self._leave_now()

    def _run_hooks(self) -> None:
        """What Python would do last, where it does not come to it."""
        self._hooks_due.wait()
        try:
            atexit._run_exitfuncs()
        finally:
            self._hooks_done.set()

    def _leave_behind_hooks(self) -> None:
        """Exit hooks have run. A thread or task that has not ended could only spoil what Python does then."""
        if self.status is not None and (unending or any(thread.daemon for thread in _others())):
            self._leave_now()

    def _leave_now(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        _exit(self.status or 0)

    def _say_hanging(self, hanging: list[threading.Thread]) -> None:
        with self._saying:
            if hanging and not self._said:
                self._said = True
                threads = "1 thread still hangs" if len(hanging) == 1 else f"{len(hanging)} threads still hang"
                self._say(f"{threads} in calls that cannot be ended, and left behind")


#: Threads that make calls of environments: see `rollout.process.threads`.
_OURS = "rollout-call"


def _others() -> list[threading.Thread]:
    here = (threading.main_thread(), threading.current_thread())
    return [thread for thread in threading.enumerate() if thread not in here and thread.name != "rollout-ending"]


def _ours_that_hang(wait_s: float = 0.3) -> list[threading.Thread]:
    """Calls of environments that do not return. A thread that has nothing to do is on its way out."""
    ours = [thread for thread in _others() if thread.name == _OURS]
    until = time.monotonic() + wait_s
    for thread in ours:
        thread.join(max(0.0, until - time.monotonic()))
    return [thread for thread in ours if thread.is_alive()]


def _that_hang() -> list[threading.Thread]:
    """What keeps the process from ending, too: threads that Python waits for."""
    waiting = "(_do_shutdown)"  # asyncio's own, which waits for those that hang
    others = [thread for thread in _others() if not thread.name.endswith(waiting)]
    return [thread for thread in others if thread.name == _OURS or not thread.daemon]

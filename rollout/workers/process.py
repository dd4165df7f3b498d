"""What a worker process is before and after it plays: its signals, its end, the script that it was started from.

It ends with the engine, however that ends. The channel is closed then, so that environments are closed and the process
leaves; where its event loop hangs, the kernel ends it some seconds later.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from rollout.process.stdio import tolerate
from rollout.workers.launch import JOB_SIGNALS, TRACE_SIGNAL
from rollout.workers.socket_channel import SocketChannel
from rollout.workers.worker import log_to, serve

#: How long the interpreter may take to leave, with whatever threads and exit handlers it was left.
LEAVE_S = 3.0

#: The signal by which Linux tells a worker that its parent is gone; also the seconds that it has then.
ORPHANED = 40

#: `prctl`'s number for the signal that is sent when the parent is gone, in <linux/prctl.h>.
_PARENT_DEATH_SIGNAL = 1

#: A process's flags among the fields of its /proc/PID/stat after its name, and the one that it has while it exits.
_STAT_FLAGS, _EXITING = 6, 0x4


def main(start: Mapping[str, Any]) -> None:
    """The process. `start` is what `LocalLaunch` says."""
    _take_signals()
    _end_after_parent()
    faulthandler.enable(start["report"])
    faulthandler.register(TRACE_SIGNAL, start["report"], all_threads=True)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    tolerate()  # a print that cannot be written is no fault of a rollout; what was printed before a crash is seen
    end = socket.socket(fileno=start["channel"])
    end.set_inheritable(False)
    os.set_inheritable(start["report"], False)
    script = _Script(start)  # before there is an event loop: a script may run one of its own

    def load(make_env: bytes) -> Any:
        script.needed_by(make_env)
        return pickle.loads(make_env)

    async def serve_it() -> None:
        channel = await SocketChannel.over(end)
        with log_to(channel, structlog=start["structlog"]):
            await serve(channel, load)

    status = 0
    with asyncio.Runner() as runner:
        try:
            runner.run(serve_it())
        except BaseException:  # such as sys.exit() in a task that an environment left behind
            status = 1
            os.write(start["report"], traceback.format_exc().encode(errors="replace"))
            # The engine hears at once that nothing is played here any more; environments are closed meanwhile.
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
    _leave(status, start["engine"])


class _Script:
    """The script that the engine was started by, which an environment may be part of: it is run here, too, once."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        """Stands where the engine stood, and runs the script where the engine's own environment is part of it."""
        self._raised = self._prepare(start)
        self._later: Mapping[str, Any] = start.get("main", {})
        """What runs it, where it was not run yet."""
        self._lock = threading.Lock()

    def needed_by(self, make_env: bytes) -> None:
        """Before an environment is loaded. Raises what the script raised."""
        with self._lock:
            if self._later and b"__main__" in make_env:
                later, self._later = self._later, {}
                self._raised = self._prepare(later)
        if self._raised is not None:
            raise self._raised

    def _prepare(self, start: Mapping[str, Any]) -> BaseException | None:
        current: Any = multiprocessing.current_process()
        current._inheriting = True  # multiprocessing's own mark: a script without a guard starts no processes here
        try:
            spawn.prepare(dict(start))
        except BaseException as error:
            return error
        finally:
            del current._inheriting
        return None


def _take_signals() -> None:
    """The engine says when a worker ends. Service managers send their signals to every process of a job.

    They get handlers that do nothing: what is ignored would be ignored by every program that environments start, too.
    A process that is forked from this one has Python's own handlers.
    """
    for number in JOB_SIGNALS:
        signal.signal(number, lambda *_: None)
    os.register_at_fork(after_in_child=_give_signals_back)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, JOB_SIGNALS)  # they were held back when the process was started


def _give_signals_back() -> None:
    for number in JOB_SIGNALS:
        default = signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)


def _end_after_parent(orphaned: int = ORPHANED) -> None:
    """Linux: has the kernel end this process half a minute after its parent, whatever holds the interpreter then.

    No handler in Python would run while the event loop hangs. So the handler is libc's own `alarm`: it is called with
    the signal's number, and has SIGALRM end the process after so many seconds.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(orphaned, ctypes.cast(libc.alarm, ctypes.c_void_p))
    libc.prctl(_PARENT_DEATH_SIGNAL, orphaned, 0, 0, 0)


def _is_ending(engine: int) -> bool:
    """Linux: whether that process is on its way out. Its connections end a moment before it is nobody's parent."""
    try:
        fields = Path(f"/proc/{engine}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return False
    return bool(int(fields[_STAT_FLAGS]) & _EXITING)


def _leave(status: int, engine: int) -> None:
    """Ends the process, within `LEAVE_S`. Without an engine nobody else ends what environments started in it."""
    if _is_ending(engine) or os.getppid() != engine:
        os.killpg(os.getpgrp(), signal.SIGKILL)

    def leave_at_last() -> None:
        time.sleep(LEAVE_S)
        os._exit(status)

    threading.Thread(target=leave_at_last, daemon=True).start()
    sys.exit(status)

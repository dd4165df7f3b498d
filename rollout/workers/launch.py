"""Starts worker processes: the contract, and the launcher for this machine.

A cluster's launcher takes this one's place: `rollout.workers.ray` is one. The setting `launch` names it: an entry point
of group `rollout.launchers` is called with the engine's configuration, and gives a `Launcher`. Where starting is all
that there is to it the setting may also be a `Launch`, a function that gives a `Worker`.

A worker leads a session of its own, so that what environments start in it ends with it: its process group is killed
when it has ended, however it did. What a terminal or a shell sends to the engine's group does not reach it; the engine
says what is to be done. Each starts as this process stood when the engine began: in its folder, with its `sys.path` and
its environment variables, whatever user code changed since.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from multiprocessing import spawn
from typing import IO, Any, Protocol

import anyio

from rollout.config import EngineConfig
from rollout.errors import RolloutError
from rollout.log import takes_structlog
from rollout.registry import load_entry
from rollout.workers.channel import Channel
from rollout.workers.socket_channel import SocketChannel

__all__ = ["Channel", "Launch", "Launcher", "LocalLaunch", "LocalWorker", "Worker"]

#: What a service manager may send to every process of a job. Held back until a worker handles them: see
#: `rollout.workers.process`.
JOB_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Has a worker write down what its threads are doing, whatever holds the interpreter.
TRACE_SIGNAL = signal.SIGQUIT

#: How long a worker may take to write that down, and how much of it is kept, in bytes.
_TRACE_S = 1.0
_MOST_TRACE = 16_000

#: Seconds between two looks where the system cannot say that a process has ended.
_POLL_S = 0.05

#: What a worker begins with. `sys.path` comes first: this package may be found only by the caller's.
_BOOT = (
    "import json, sys; start = json.load(sys.stdin); sys.path[:] = start['sys_path']; "
    "from rollout.workers.process import main; main(start)"
)


class Worker(Protocol):
    """A started process."""

    @property
    def channel(self) -> Channel: ...

    async def ended(self) -> str:
        """Waits until it has ended; says how."""
        ...

    async def trace(self) -> str:
        """What its threads are doing, or did when it crashed; empty where that cannot be told."""
        ...

    def kill(self) -> None:
        """Ends it now, and what was started in it. May be called for one that has ended."""
        ...


Launch = Callable[[], Awaitable[Worker]]


class Launcher(Protocol):
    """What starts the processes of one engine: opened before the first, closed when the last has ended."""

    @property
    def elastic(self) -> bool:
        """Whether processes come and go as there is room for them. Then `start` waits for room, the engine begins with
        the first process, and the others join."""
        ...

    def pickled(self, make_env: Callable[[], Any]) -> bytes:
        """What makes environments, as a process reads it. Raises whatever an object raises that cannot be written."""
        ...

    async def open(self, *, main_script: bool, on_lost: Callable[[RolloutError], None]) -> None:
        """Before the first process. Raises RolloutError, ConfigError.

        `main_script` says whether the engine's own environment is part of the script that this process was started by.
        `on_lost` is called where no process can be started any more, nor comes back.
        """
        ...

    async def start(self) -> Worker:
        """Starts a process, and gives it once its channel is there. Raises RolloutError."""
        ...

    async def aclose(self) -> None:
        """After the last process. It was perhaps never opened."""
        ...


def launcher(config: EngineConfig) -> Launcher:
    """What starts the processes. Raises ConfigError for a name that is none."""
    if not isinstance(config.launch, str):
        return _Launched(config.launch)
    made: Launcher = load_entry("rollout.launchers", config.launch)(config)
    return made


class _Launched:
    """A `Launch`, as a launcher."""

    elastic = False

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    def __repr__(self) -> str:
        return f"<_Launched by {self._launch!r}>"

    def pickled(self, make_env: Callable[[], Any]) -> bytes:
        """See `Launcher`."""
        return pickle.dumps(make_env)

    async def open(self, *, main_script: bool, on_lost: Callable[[RolloutError], None]) -> None:
        """See `Launcher`."""

    async def start(self) -> Worker:
        """See `Launcher`."""
        return await self._launch()

    async def aclose(self) -> None:
        """See `Launcher`."""


class LocalWorker:
    """A process on this machine."""

    def __init__(self, process: subprocess.Popen[bytes], channel: Channel, report: IO[bytes]) -> None:
        """`report` is where the process writes its traces."""
        self._process = process
        self._channel = channel
        self._report = report
        self._how: str | None = None
        self._trace = ""

    def __repr__(self) -> str:
        return f"<LocalWorker {self.pid} {self._how or 'running'}>"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def channel(self) -> Channel:
        """See `Worker`."""
        return self._channel

    async def ended(self) -> str:
        """See `Worker`."""
        if self._how is None:
            await self._exit()
            self._take_end()
        return self._how or ""

    async def trace(self) -> str:
        """See `Worker`."""
        if self._how is None:
            before = self._written()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, TRACE_SIGNAL)
            with anyio.move_on_after(_TRACE_S):
                while self._how is None and self._written() == before:  # noqa: ASYNC110  # a file says nothing itself
                    await anyio.sleep(_POLL_S)
                await anyio.sleep(_POLL_S)  # it is written in one go, line by line
        return self._trace if self._how is not None else self._text()

    def kill(self) -> None:
        """See `Worker`."""
        if self._how is None:
            self._kill_group()

    async def _exit(self) -> None:
        """Waits until the process has ended. It is not reaped: its number, and its group's, stay its own."""
        with contextlib.suppress(AttributeError, OSError):  # no pidfd here, or no descriptor is left
            descriptor = os.pidfd_open(self.pid)
            try:
                await anyio.wait_readable(descriptor)
            finally:
                os.close(descriptor)
            return
        while self._runs():  # noqa: ASYNC110  # nothing else can be waited for
            await anyio.sleep(_POLL_S)

    def _runs(self) -> bool:
        with contextlib.suppress(ChildProcessError):  # somebody else has waited for it
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        return False

    def _take_end(self) -> None:
        if self._how is not None:  # another caller was first
            return
        self._kill_group()
        status = self._process.wait()  # at once: it has ended
        self._trace = self._text()
        self._report.close()
        self._how = f"exit status {status}"
        if status < 0:
            with contextlib.suppress(ValueError):
                self._how = f"killed by {signal.Signals(-status).name}"

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing is left of it
            os.killpg(self.pid, signal.SIGKILL)

    def _written(self) -> int:
        return os.fstat(self._report.fileno()).st_size

    def _text(self) -> str:
        return os.pread(self._report.fileno(), _MOST_TRACE, 0).decode(errors="replace")


class LocalLaunch:
    """Starts processes that have none of this one's state, each as this one stands now."""

    elastic = False

    def __init__(self, config: EngineConfig) -> None:
        """Nothing of the configuration is about this machine's processes."""
        self._start: dict[str, Any] = {}
        self._folder = ""
        self._variables: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<LocalLaunch in {self._folder}>"

    def pickled(self, make_env: Callable[[], Any]) -> bytes:
        """See `Launcher`."""
        return pickle.dumps(make_env)

    async def open(self, *, main_script: bool, on_lost: Callable[[RolloutError], None]) -> None:
        """See `Launcher`. Processes import the script that this one was started by only if `main_script` says so.

        Raises RolloutError in a worker that does so, where the script has no guard.
        """
        try:
            self._start = spawn.get_preparation_data("rollout-worker")
        except RuntimeError as error:
            raise RolloutError(
                'a script that starts worker processes must do so under `if __name__ == "__main__":`, since each of '
                "them imports it"
            ) from error
        del self._start["authkey"]  # a secret, for managers of multiprocessing, which a worker has of its own
        if not main_script:
            # It is imported once an environment of it is played, by a stream of its own.
            main = {name: value for name, value in self._start.items() if name.startswith("init_main")}
            self._start = {name: value for name, value in self._start.items() if name not in main}
            self._start["main"] = main
        self._folder = self._start["dir"] = os.getcwd()
        self._start["sys_path"] = [os.path.join(self._folder, place) for place in sys.path]
        self._start["engine"] = os.getpid()
        self._start["structlog"] = takes_structlog()
        self._variables = dict(os.environ)

    async def aclose(self) -> None:
        """See `Launcher`."""

    async def start(self) -> Worker:
        """See `Launcher`."""
        ours, theirs = socket.socketpair()
        with theirs:
            channel = await SocketChannel.over(ours)
            # Nothing is awaited from here: whoever cancels this leaves no process behind that nobody knows.
            report = tempfile.TemporaryFile()  # noqa: SIM115  # the worker's, until it has ended
            try:
                return LocalWorker(self._process(theirs, report), channel, report)
            except OSError as error:
                report.close()
                channel.abort()
                raise RolloutError(f"a worker process cannot be started in {self._folder}: {error}") from error

    def _process(self, end: socket.socket, report: IO[bytes]) -> subprocess.Popen[bytes]:
        # In the event loop's thread, not in another one: the kernel tells a worker that its parent is gone when the
        # thread that started it has ended. It takes 2 ms.
        start = {**self._start, "channel": end.fileno(), "report": report.fileno()}
        flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing
        with tempfile.TemporaryFile() as told, _held(JOB_SIGNALS):
            told.write(json.dumps(start).encode())
            told.seek(0)
            return subprocess.Popen(
                [spawn.get_executable() or sys.executable, *flags, "-c", _BOOT],
                stdin=told,
                pass_fds=(end.fileno(), report.fileno()),
                cwd=self._folder,
                env=self._variables,
                start_new_session=True,
            )


@contextlib.contextmanager
def _held(signals: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Holds signals back from this thread, and from the process that it starts until that one takes them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

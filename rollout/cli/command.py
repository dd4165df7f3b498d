"""What every command does around its work: its standard output, what a signal means, and its exit status.

Exit status: 0 all went well; 1 something failed, was stopped, or left nothing to train on; 2 wrong use; 3 the server
could not be reached, or refused; 4 too many rollouts failed (`--fail-fast`, `--max-failures`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol

import msgspec
import typer

from rollout.cli.ends import Ending, Signals
from rollout.errors import RolloutError, ServerError, TooManyFailures, UsageError, UserCodeFailed
from rollout.process.stdio import Output, tolerate

#: Seconds between two looks at whether a library has taken the signals.
_HOLD_S = 1.0

#: Seconds after which an end that takes longer is said.
_SAID_S = 1.0


class Cancelled(Protocol):
    """What a signal may cancel, such as anyio's scope."""

    def cancel(self) -> None: ...


class Played(msgspec.Struct):
    """What `rollout run` ends with."""

    result: dict[str, Any]
    """The object of `--json`."""
    title: str
    rows: list[tuple[str, str]]
    """The table for people."""
    complete: bool
    """Whether every rollout was played and none failed."""
    error: RolloutError | None = None
    """What ended the run, or what is wrong with what it left."""


class Command:
    """One call of the command line. In the process of another program, such as a test's, it leaves that alone."""

    def __init__(self, *, own_process: bool = False) -> None:
        """`own_process`: standard output, the signals and the end of this process are the command's."""
        self.output = Output()
        self.go_on = ""
        """How what is under way goes on once it was interrupted, where it can."""
        self.log_path: Path | None = None
        """Where the whole of a fault is written; None before there is a run folder."""
        self._own_process = own_process
        self._ending = Ending(self.say) if own_process else None
        self._signals = Signals(on_interrupt=lambda: self._settle(1), say=self.say)

    def __repr__(self) -> str:
        return f"<Command {self.output}, {self._signals}>"

    @property
    def signals(self) -> Signals:
        """Those that stop it."""
        return self._signals

    def do(self, work: Callable[[], int]) -> NoReturn:
        """Does the work, which gives the status. A user's mistake and a server's are one line."""
        from rollout.registry import check_packages

        if self._own_process:
            self.output.claim()
        with self._signals, self._breaking():
            try:
                check_packages()
                status = work()
            except BaseException as error:
                status = self.said(error)
        if self.output.fault is not None:
            self.say(f"cannot write to standard output: {self.output.fault.strerror}")
            status = status or 1
        raise typer.Exit(status)

    def run(self, work: Callable[[], Awaitable[int]]) -> int:
        """Does asynchronous work, which the first signal cancels unless it says what else that means.

        When the work has ended the command has its status: what keeps the loop from closing does not keep it.
        """
        import anyio

        from rollout.process.user_tasks import run

        async def settled() -> int:
            status = 1
            try:
                with anyio.CancelScope() as scope, self.stopping(scope, missed=True), self._holding():
                    status = await work()
                if scope.cancelled_caught:
                    self.say("; ".join(filter(None, ("stopped", self.go_on))))
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:
                status = self.said(error)
            self._signals.too_late = self._own_process
            self._settle(status)
            return status

        return run(settled)

    @contextlib.contextmanager
    def stopping(self, scope: Cancelled, *, missed: bool = False) -> Iterator[None]:
        """The first signal cancels a scope; what takes longer to end is said. `missed`: one that came before does."""
        import asyncio

        def stop() -> None:
            scope.cancel()
            asyncio.get_running_loop().call_later(_SAID_S, self.say, "stopping; control-C again leaves at once")

        with self._signals.meaning(stop, missed=missed):
            yield

    def bound(self, seconds: float, line: str) -> None:
        """Ends the process with status 1 and a line, unless the work has ended by then."""
        if self._ending is not None:
            self._ending.bound(seconds, line)

    def leave(self, status: int) -> NoReturn:
        """Ends the process."""
        if self._ending is not None:
            self._ending.leave(status)
        sys.exit(status)

    def say(self, line: str) -> None:
        """One line for people."""
        from rollout.cli.logs import printable

        print(f"rollout: {printable(line)}", file=sys.stderr, flush=True)

    def print_json(self, value: Any) -> None:
        """The one object on standard output."""
        self.output.write(msgspec.json.encode(value).decode() + "\n")

    def tell(self, played: Played, *, as_json: bool) -> int:
        """Prints what a run came to, and gives the status."""
        from rollout.cli import progress

        worth_a_table = played.error is None or played.result["turns"]
        if as_json:
            self.print_json(played.result)
        if worth_a_table and as_json:
            progress.print_rows(progress.make_console(), played.title, played.rows)
        elif worth_a_table:
            self.output.write(progress.table_text(played.title, played.rows, terminal=self.output.is_terminal))
        if played.error is not None:
            return self.said(played.error)
        return 0 if played.complete else 1

    def said(self, error: BaseException) -> int:
        """Says what ended the work, and gives the status."""
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, KeyboardInterrupt):
            self.say("; ".join(filter(None, ("stopped", self.go_on))))
            return 1
        if isinstance(error, RolloutError):
            cause = error.__cause__ if isinstance(error, UserCodeFailed) else None
            kept = f"; the traceback is in {self.keep_traceback(cause)}" if cause is not None else ""
            self.say(f"{error}{kept}")
            kinds = ((ServerError, 3), (UsageError, 2), (TooManyFailures, 4))
            return next((status for kind, status in kinds if isinstance(error, kind)), 1)
        if os.environ.get("ROLLOUT_DEBUG"):
            traceback.print_exception(error)
        from rollout.door import error_text

        kept = self.keep_traceback(error)
        self.say(f"internal error: {type(error).__name__}: {error_text(error)}; the traceback is in {kept}")
        return 1

    def keep_traceback(self, error: BaseException) -> str:
        """Writes a traceback where it can be found; gives the place."""
        from rollout.cli.logs import write_traceback

        path = (
            self.log_path or Path(tempfile.gettempdir()) / f"rollout-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        )
        try:
            write_traceback(error, path)
        except OSError as fault:
            return f"no file: {path} cannot be written ({fault.strerror}); set ROLLOUT_DEBUG=1 to see it"
        return str(path)

    def _settle(self, status: int) -> None:
        if self._ending is not None:
            self._ending.settle(status)

    def interrupt(self, error: Exception) -> None:
        """See `rollout.process.blocked.Breaker`."""
        self._signals.interrupt(error)

    def abandon(self, line: str) -> None:
        """See `rollout.process.blocked.Breaker`."""
        kept = f"; what has ended is kept in {self.log_path.parent}" if self.log_path is not None else ""
        self.bound(0.0, f"{line}; leaving without it{kept}")

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        """Where the process is ours: user code that blocks its main thread is broken off, and that leaves it stays."""
        from rollout.process.blocked import broken_by
        from rollout.process.exits import contained_exits

        with contextlib.ExitStack() as stack:
            if self._own_process:
                stack.enter_context(broken_by(self))
                stack.enter_context(contained_exits())
            yield

    @contextlib.contextmanager
    def _holding(self) -> Iterator[None]:
        """Keeps the signals ours while user code runs."""
        import asyncio

        loop = asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []

        def look() -> None:
            self._signals.hold()
            timers[:] = [loop.call_later(_HOLD_S, look)]

        look()
        try:
            yield
        finally:
            timers[0].cancel()


def command_of(context: typer.Context) -> Command:
    """The command of a context; one that leaves the process alone, where none was given."""
    return context.ensure_object(Command)


def main(app: typer.Typer) -> NoReturn:
    """The console script: this process is the command's."""
    tolerate()
    command = Command(own_process=True)
    try:
        app(obj=command)
    except SystemExit as ended:
        status = ended.code
    command.leave(status if isinstance(status, int) else 0 if status is None else 1)

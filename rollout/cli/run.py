"""`rollout run`: settings -> engine -> run folder, with a display, and an end for every way in which a run can end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread

from rollout.cli import loggers, progress
from rollout.cli.command import Command, Played
from rollout.cli.ends import ONE_SIGNAL_S
from rollout.cli.failure_limit import FailureLimit
from rollout.cli.logs import EventLog
from rollout.cli.metrics import serving_metrics
from rollout.cli.preflight import preflight
from rollout.cli.resume import Plan, go_on
from rollout.cli.summary import Summary, table_rows, why_untrainable
from rollout.engine import Engine
from rollout.errors import RolloutError, ServerError, TooManyFailures, UsageError
from rollout.loop.collector import infrequent_full_gc
from rollout.observe.exporting import exporting
from rollout.participant import Participant
from rollout.process.threads import Threads
from rollout.records import FailureKind, Rollout
from rollout.registry import env_factory
from rollout.store import folder as store
from rollout.store.config import config_of
from rollout.store.settings import RunSettings
from rollout.store.task_list import TaskList

#: Errors that every further request would meet too.
_REFUSALS = frozenset({"RequestRefused", "AuthenticationFailed", "ModelNotFound"})

#: How long rollouts that were cancelled may take to end, before the command leaves without them.
CANCEL_S = 30.0


class Run:
    """One run of the command."""

    def __init__(
        self,
        settings: RunSettings,
        output: Path | None,
        resume: bool,
        log: EventLog,
        command: Command,
        given: frozenset[str] = frozenset(),
    ) -> None:
        """`given` are the settings that were given anew where a run goes on: see `rollout.cli.resume`."""
        self.settings = settings
        self._here = Path.cwd()
        """Where the command was called: an environment may go elsewhere."""
        self._output = self._here / output if output is not None else None
        self._resume = resume
        self._given = given
        self._log = log
        self._command = command
        self._console = progress.make_console()
        log.show = self._say
        self._summary = Summary(env=settings.env, mode=settings.mode, success_at=settings.success_at)
        self._limit = FailureLimit(settings.max_failures)
        self._folder: store.RunFolder | None = None
        self._loggers: loggers.Found = []
        self._error: RolloutError | None = None
        """What ended the run before its time."""
        self._stopped = False

    async def play(self) -> Played:
        """Plays. Raises UsageError, ServerError for what is wrong before the first rollout."""
        settings = self.settings
        make_env = env_factory(settings.env, settings.env_args)
        # Before a server is asked for anything: a wrong folder or task is the user's quickest mistake to mend.
        threads = Threads(1)
        try:
            self._loggers = await threads.run(loggers.found, settings.log)
            plan = await threads.run(self._planned, make_env)
        finally:
            threads.close()
        with plan:
            if plan.missing:
                await preflight(make_env, settings.env, plan.tasks[0])
            return await self._play(make_env, plan)

    def _planned(self, make_env: Callable[[], Participant]) -> Plan:
        if self._resume and self._output is not None:
            return Plan.resumed(self._output, self.settings, self._given, make_env)
        return Plan.new(self.settings, make_env)

    async def _play(self, make_env: Callable[[], Participant], plan: Plan) -> Played:
        settings, tasks, skip = self.settings, plan.tasks, plan.skip
        expected = len(tasks) * settings.rollouts_per_task
        with anyio.CancelScope() as closing, contextlib.ExitStack() as ending:
            engine = Engine(settings.engine_config(), make_env)
            async with (
                exporting(settings.tracing),
                serving_metrics(engine.stats, settings.metrics_port, settings.metrics_host, self._say),
                engine,
            ):
                folder = await self._begin(engine, plan)
                wall, before = time.perf_counter(), engine.stats()
                try:
                    with infrequent_full_gc():
                        await self._stream(engine, tasks, skip)
                    # From here on there is nothing to stop but the end itself: the run has its result all the same.
                    ending.enter_context(self._command.stopping(closing))
                    await self._see_to(folder)
                finally:
                    wall_s, run_dir, stats = time.perf_counter() - wall, str(folder.path), engine.stats()
                    if self._summary.rollouts >= expected and not self._stopped:
                        self._command.go_on = ""
                    cpu_s = stats.cpu_s - before.cpu_s
                    result = self._summary.as_json(wall_s=wall_s, client_cpu_s=cpu_s, run_dir=run_dir, stats=stats)
                    folder.close()
                    with contextlib.suppress(OSError):  # a full disk is said by what it stopped
                        folder.write_summary(result)
        if not self._console.is_terminal:  # a log ends with where the run lies; the table may go elsewhere
            self._say(f"run folder: {run_dir}")
        return Played(
            result,
            title=f"{settings.env} on {result['model']} ({result['transport']}, {settings.mode})",
            rows=table_rows(self._summary, wall_s, run_dir, stats),
            complete=not result["failures"] and result["rollouts"] >= expected,
            error=self._what_ended(expected),
        )

    async def _begin(self, engine: Engine, plan: Plan) -> store.RunFolder:
        """The run's folder, once the servers are there."""
        self._summary.model, self._summary.transport = engine.server.model, engine.server.dialect
        if engine.codec is not None:
            self._summary.bridges = engine.codec.description
            self._summary.reader = engine.codec.reader.name if engine.codec.reader is not None else ""
        model = engine.server.model
        name = self._output.name if self._output is not None else Path(self.settings.env.rpartition(":")[0]).stem
        config = config_of(self.settings).settings
        told = await anyio.to_thread.run_sync(loggers.tracked, self._output if self._resume else None)
        ready = await loggers.begun(self._loggers, name or self.settings.env, config, told.runs)
        told.groups = max(told.groups, plan.tasks_on_disk)
        engine.log_to(*ready, groups=told.groups)
        folder = self._folder = await anyio.to_thread.run_sync(plan.folder, self._output, model, self._here)
        self._log.open(folder.path / store.EVENTS)
        if ready:
            told.runs |= loggers.run_ids(self._loggers, ready)
            engine.log_to(await anyio.to_thread.run_sync(loggers.Tracking, folder.path, told))
        await anyio.to_thread.run_sync(self._add_resumed, plan)
        self._command.log_path, self._command.go_on = self._log.path, go_on(folder.path)
        return folder

    async def _see_to(self, folder: store.RunFolder) -> None:
        """At the end: is what was written where it is looked for?"""
        try:
            with self._kept():
                await anyio.to_thread.run_sync(folder.check)
        except UsageError as error:
            self._error = self._error or error

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """What goes wrong with the folder ends the run."""
        assert self._folder is not None
        try:
            yield
        except OSError as error:
            fault = error.strerror or error
            raise _FolderFault(f"cannot write the run folder {str(self._folder.path)!r}: {fault}") from error

    def _what_ended(self, expected: int) -> RolloutError | None:
        assert self._folder is not None
        played = self._summary.rollouts - self._summary.failures[FailureKind.CANCELLED.value]
        so = go_on(self._folder.path)
        error = self._error
        if isinstance(error, _Refused):
            return error
        if error is not None:
            kept = "" if isinstance(error, store.FolderGone) else "; what has ended is kept"
            ended = type(error)(f"{error}{kept}; {so}")
            ended.__cause__ = error.__cause__
            return ended
        if self._stopped and played < expected:
            return RolloutError(f"stopped: {played} of {expected} rollouts were played; {so}")
        why = why_untrainable(self._summary)
        return RolloutError(f"nothing to train on: {why}") if why else None

    async def _stream(self, engine: Engine, tasks: TaskList, skip: set[tuple[int, int]]) -> None:
        assert self._folder is not None
        members = self.settings.rollouts_per_task

        async def keep(rollout: Rollout) -> None:
            await self._keep(rollout, engine)

        async with anyio.create_task_group() as beside:
            beside.start_soon(progress.show, self._console, len(tasks) * members, engine.stats, self._summary)
            with self._stopping(engine):
                try:
                    async for _ in engine.stream(tasks, rollouts_per_task=members, skip=skip, on_rollout=keep):
                        pass
                except RolloutError as error:  # no server or no process is left, the disk is full, too much hangs
                    self._error = error
            beside.cancel_scope.cancel()

    async def _keep(self, rollout: Rollout, engine: Engine) -> None:
        assert self._folder is not None
        with self._kept():
            await self._folder.write(rollout)
        await anyio.to_thread.run_sync(self._summary.add, rollout)
        failure = rollout.failure
        ended: RolloutError | None = None
        if failure is not None and failure.error in _REFUSALS and not engine.stats().turns:
            # Nothing was ever answered, so nothing will be: say it once instead of once per rollout.
            ended = _Refused(f"the server refuses these requests: {failure.message}")
        elif (why := self._limit.add(rollout)) is not None:
            ended = TooManyFailures(why)
        if ended is not None and self._error is None:
            self._error = ended
            engine.cancel()

    @contextlib.contextmanager
    def _stopping(self, engine: Engine) -> Iterator[None]:
        """The first signal ends after the running turns, within the grace; the second at once."""
        loop = asyncio.get_running_loop()
        grace_s = self.settings.stop_grace_s
        timers: list[asyncio.TimerHandle] = []

        def cancel(why: str) -> None:
            self._stopped = True
            self._say(f"{why}: what has ended is kept")
            engine.cancel()
            self._command.bound(CANCEL_S, f"the run does not end by itself; {go_on(self._path)}")

        def stop() -> None:
            self._stopped = True
            engine.stop_admitting()
            left_s = max(0.0, grace_s - self._command.signals.age_s)
            have = f"running turns have {round(left_s, 1):g} s to end"
            said = f"stopping: nothing new starts, {have}; control-C again stops at once"
            # When the next signal would count as another one.
            timers.append(loop.call_later(2 * ONE_SIGNAL_S, self._say, said))
            timers.append(loop.call_later(left_s, cancel, f"{grace_s:g} s are over, stopping now"))
            # Another environment may block the loop meanwhile.
            most_s = grace_s + CANCEL_S + (self.settings.close_timeout_s or 0.0)
            self._command.bound(most_s, f"the run does not end by itself; {go_on(self._path)}")

        with self._command.signals.meaning(stop, lambda: cancel("stopping now"), patience_s=grace_s):
            try:
                yield
            finally:
                for timer in timers:
                    timer.cancel()

    @property
    def _path(self) -> Path:
        assert self._folder is not None
        return self._folder.path

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, style="yellow", soft_wrap=True)  # a path is not to be folded

    def _add_resumed(self, plan: Plan) -> None:
        """The summary counts what is on disk already."""
        for rollout in plan.on_disk():
            self._summary.add_resumed(rollout)


class _Refused(ServerError):
    """Nothing was ever answered: there is nothing to go on with."""


class _FolderFault(UsageError):
    """The disk is full, or gone: nothing more can be kept."""

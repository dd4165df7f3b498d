"""`rollout run`: settings -> engine -> run folder, with a display, and control-C once and twice."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from rollout import progress, store
from rollout.engine import Engine
from rollout.env import Env
from rollout.errors import NoServerLeft, ServerError, UsageError
from rollout.lag import spared_collector
from rollout.logs import EventLog
from rollout.records import Rollout
from rollout.registry import env_factory
from rollout.resume import Plan, go_on
from rollout.settings import RunSettings
from rollout.summary import Summary, table_rows
from rollout.task_list import TaskList
from rollout.threads import Threads

#: After the first control-C, how long running turns may take to end.
GRACE_S = 60.0

#: Errors that every further request would meet too.
_REFUSALS = frozenset({"RequestRefused", "AuthenticationFailed", "ModelNotFound"})


class Played(msgspec.Struct):
    """What `rollout run` ends with."""

    result: dict[str, Any]
    """The object of `--json`."""
    complete: bool
    """Whether every rollout was played and none failed."""


class Run:
    """One run of the command."""

    def __init__(
        self,
        settings: RunSettings,
        output: Path | None,
        resume: bool,
        log: EventLog,
        given: frozenset[str] = frozenset(),
    ) -> None:
        """`given` are the settings that were given anew where a run goes on: see `rollout.resume`."""
        self.settings = settings
        self._output = output.absolute() if output is not None else None
        self._resume = resume
        self._given = given
        self._log = log
        self._console = progress.make_console()
        log.show = lambda line: self._console.print(line, markup=False, style="yellow")
        self._summary = Summary(env=settings.env, mode=settings.mode)
        self._folder: store.RunFolder | None = None
        self._refused: str | None = None

    async def play(self) -> Played:
        """Plays. Raises UsageError, ServerError."""
        settings = self.settings
        make_env = env_factory(settings.env, settings.env_args)
        # Before a server is asked for anything: a wrong folder or task is the user's quickest mistake to mend.
        with await Threads(1).run(self._planned, make_env) as plan:
            return await self._play(make_env, plan)

    def _planned(self, make_env: Callable[[], Env]) -> Plan:
        if self._resume and self._output is not None:
            return Plan.resumed(self._output, self.settings, self._given, make_env)
        return Plan.new(self.settings, make_env)

    async def _play(self, make_env: Callable[[], Env], plan: Plan) -> Played:
        settings, tasks, skip = self.settings, plan.tasks, plan.skip
        async with Engine(settings.engine_config(), make_env) as engine:
            self._summary.model, self._summary.transport = engine.server.model, engine.server.dialect
            folder = self._folder = await anyio.to_thread.run_sync(plan.folder, self._output, engine.server.model)
            self._log.open(folder.path / store.EVENTS)
            await anyio.to_thread.run_sync(self._add_resumed, plan)
            wall, before = time.perf_counter(), engine.stats()
            try:
                with spared_collector():
                    await self._stream(engine, tasks, skip)
            finally:
                wall_s = time.perf_counter() - wall
                run_dir = str(folder.path)
                stats = engine.stats()
                cpu_s = stats.cpu_s - before.cpu_s
                result = self._summary.as_json(wall_s=wall_s, client_cpu_s=cpu_s, run_dir=run_dir, stats=stats)
                folder.close()
                with contextlib.suppress(OSError):  # a full disk is said by what it stopped
                    folder.write_summary(result)
        if self._refused is not None:
            raise ServerError(f"the server refuses these requests: {self._refused}")
        title = f"{settings.env} on {result['model']} ({result['transport']}, {settings.mode})"
        progress.print_rows(self._console, title, table_rows(self._summary, wall_s, run_dir, stats))
        expected = len(tasks) * settings.rollouts_per_task
        return Played(result, complete=not result["failures"] and result["rollouts"] >= expected)

    async def _stream(self, engine: Engine, tasks: TaskList, skip: set[tuple[int, int]]) -> None:
        assert self._folder is not None
        members = self.settings.rollouts_per_task
        fault: OSError | None = None
        gone: NoServerLeft | None = None

        async def keep(rollout: Rollout) -> None:
            await self._keep(rollout, engine)

        async with anyio.create_task_group() as beside:
            beside.start_soon(self._watch_signals, engine)
            beside.start_soon(progress.show, self._console, len(tasks) * members, engine.stats, self._summary)
            try:
                async for _ in engine.stream(tasks, rollouts_per_task=members, skip=skip, on_rollout=keep):
                    pass
            except OSError as error:
                fault = error
            except NoServerLeft as error:
                gone = error
            beside.cancel_scope.cancel()
        if gone is not None:
            raise NoServerLeft(f"{gone}; what is finished is kept: {go_on(self._folder.path)}") from gone
        if fault is not None:
            raise UsageError(
                f"cannot write the run folder: {fault}; once there is room {go_on(self._folder.path)}"
            ) from fault

    async def _keep(self, rollout: Rollout, engine: Engine) -> None:
        assert self._folder is not None
        await self._folder.write(rollout)
        await anyio.to_thread.run_sync(self._summary.add, rollout)
        failure = rollout.failure
        if failure is not None and failure.error in _REFUSALS and not engine.stats().turns:
            # Nothing was ever answered, so nothing will be: say it once instead of once per rollout.
            self._refused = self._refused or failure.message
            engine.cancel()

    async def _watch_signals(self, engine: Engine) -> None:
        """Control-C once ends after the running turns, twice at once. A finished run does not wait for this."""
        stops = 0
        async with anyio.create_task_group() as timers:
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    stops += 1
                    if stops > 1:
                        self._console.print("stopping now; what is finished is kept", style="yellow")
                        engine.cancel()
                        continue
                    self._console.print(
                        "stopping: running turns may end, nothing new starts; control-C again stops at once",
                        style="yellow",
                    )
                    engine.stop_admitting()
                    timers.start_soon(_cancel_after_grace, engine)

    def _add_resumed(self, plan: Plan) -> None:
        """The summary counts what is on disk already."""
        for rollout in plan.on_disk():
            self._summary.add_resumed(rollout)


async def _cancel_after_grace(engine: Engine) -> None:
    await anyio.sleep(GRACE_S)
    engine.cancel()

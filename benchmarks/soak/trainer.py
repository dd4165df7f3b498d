"""The embedded job: an engine with two worker processes on one server, in a process of its own.

    python -m benchmarks.soak.trainer PLAN.json

It reads orders from standard input, a line each (`pause SECONDS`, `update MODE`), and says on standard output, as JSON
lines, where it stands and what came of each order. Rollouts are written to `rollouts.jsonl` beside the plan, as the
command's are; groups, as they are delivered, to `groups.jsonl`.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from benchmarks.soak import zoo
from rollout import Engine, EngineConfig, Env
from rollout.errors import RolloutError
from rollout.records import Group, Rollout
from rollout.store.folder import encode_rollout
from transports.embedded import MODEL_DIR

#: Rollouts between two looks at the memory.
LOOK_EVERY = 50


class Plan(msgspec.Struct, kw_only=True):
    """What a job plays."""

    url: str
    folder: str
    tasks: int
    members: int
    seed: int
    env: str = "AsyncZoo"
    weights: list[str] = []
    """Model folders: version v has the weights of the folder at v modulo their number. None are pushed where empty."""
    processes: int = 2
    concurrency: int = 32
    max_tokens: int = 24
    retries: int = 3
    kinds: list[str] = []
    """What misbehaves; empty is what the environment has."""


class Job:
    """One engine, its orders, and what it writes."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._folder = Path(plan.folder)
        self._version = 0
        self._ended = 0
        self._rollouts = (self._folder / "rollouts.jsonl").open("ab")
        self._groups = (self._folder / "groups.jsonl").open("ab")

    async def play(self) -> None:
        plan = self._plan
        config = EngineConfig(
            base_url=plan.url,
            tokenizer=str(MODEL_DIR),
            max_tokens=plan.max_tokens,
            max_model_len=4096,
            concurrency=plan.concurrency,
            processes=plan.processes,
            sampling={"temperature": 1.0},
            verify=True,
            rollout_retries=plan.retries,
            step_timeout_s=4.0,
            worker_silence_s=6.0,
            worker_start_s=60.0,
            server_wait_s=240.0,
        )
        make_env: Callable[[], Env] = getattr(zoo, plan.env)
        kinds = plan.kinds or (zoo.ASYNC_KINDS if plan.env == "AsyncZoo" else zoo.PLAIN_KINDS)
        async with Engine(config, make_env) as engine:
            if plan.weights:
                await engine.update_weights(0, plan.weights[0], in_flight="wait")
            say("ready")
            async with anyio.create_task_group() as beside:
                beside.start_soon(self._obey, engine)
                beside.start_soon(self._report, engine)
                tasks = zoo.tasks_of(kinds, plan.tasks, plan.seed)
                async for group in engine.stream(tasks, rollouts_per_task=plan.members, on_rollout=self._keep):
                    self._deliver(group)
                beside.cancel_scope.cancel()
            self._say_where(engine, "played")
        say("closed", threads=len(os.listdir("/proc/self/task")))

    async def _keep(self, rollout: Rollout) -> None:
        self._ended += 1
        await anyio.to_thread.run_sync(self._write, rollout)

    def _write(self, rollout: Rollout) -> None:
        self._rollouts.write(encode_rollout(rollout) + b"\n")
        self._rollouts.flush()

    def _deliver(self, group: Group) -> None:
        members = [rollout.member for rollout in group.rollouts]
        self._groups.write(json.dumps({"task_index": group.task_index, "members": members}).encode() + b"\n")
        self._groups.flush()

    async def _obey(self, engine: Engine) -> None:
        """Carries out the orders, one after another."""
        lines = asyncio.StreamReader()
        with os.fdopen(os.dup(0), "rb") as orders:  # no thread reads them: it would be waited for at the end
            loop = asyncio.get_running_loop()
            pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), orders)
            try:
                while line := (await lines.readline()).decode():
                    await self._carry_out(engine, line.strip())
            finally:
                pipe.close()

    async def _carry_out(self, engine: Engine, line: str) -> None:
        order, _, argument = line.partition(" ")
        started = time.monotonic()
        try:
            if order == "pause":
                await engine.pause()
                await anyio.sleep(float(argument))
                await engine.resume()
            else:
                self._version += 1
                weights = self._plan.weights
                folder = weights[self._version % len(weights)]
                await engine.update_weights(self._version, folder, in_flight=argument)  # type: ignore[arg-type]  # an order names a mode
        except RolloutError as error:
            say("refused", order=line, error=f"{type(error).__name__}: {error}")
        else:
            took_s = round(time.monotonic() - started, 2)
            say("obeyed", order=line, took_s=took_s, version=engine.weight_version)

    async def _report(self, engine: Engine) -> None:
        looked = -LOOK_EVERY
        while True:
            if self._ended >= looked + LOOK_EVERY:
                looked = self._ended
                self._say_where(engine, "memory", rss_mb=round(resident_mb(), 3))
            self._say_where(engine, "stands")
            await anyio.sleep(0.5)

    def _say_where(self, engine: Engine, event: str, **fields: Any) -> None:
        stats = engine.stats()
        say(
            event,
            turns=stats.turns,
            ended=self._ended,
            deaths=stats.process_deaths,
            retried=stats.retried,
            servers=[msgspec.to_builtins(server) for server in stats.servers],
            **fields,
        )


def resident_mb() -> float:
    """This process's memory, after what is free was given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def say(event: str, **fields: Any) -> None:
    """A line for the storm."""
    print(json.dumps({"event": event, **fields}), flush=True)


def main(path: str) -> None:
    """The process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    plan = msgspec.json.decode(Path(path).read_bytes(), type=Plan)
    anyio.run(Job(plan).play)


if __name__ == "__main__":
    main(sys.argv[1])

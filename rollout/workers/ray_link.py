"""The connection to what speaks to Ray: `rollout.workers.ray_driver`, in a process of its own or in this one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from typing import IO

import anyio.to_thread

from rollout.errors import RolloutError
from rollout.workers import ray_messages as messages
from rollout.workers.ray_driver import boot, drive
from rollout.workers.ray_reasons import last_line
from rollout.workers.socket_channel import SocketChannel

#: How long the driver may take to end.
END_S = 15.0

#: What is kept of what the driver's process says, in bytes.
_MOST_REPORT = 4096


class Link:
    """The connection to the driver: a process of its own, or a task where this process is part of a cluster."""

    def __init__(self, channel: SocketChannel, process: subprocess.Popen[bytes] | None, report: IO[bytes]) -> None:
        self._channel = channel
        self._process = process
        self._report = report
        self.task: asyncio.Task[None] | None = None
        self.connected = False
        """Whether it is part of the cluster."""

    @classmethod
    async def open(cls) -> Link:
        """Starts the driver. Raises RolloutError."""
        ours, theirs = socket.socketpair()
        channel = await SocketChannel.over(ours)
        report = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the link
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            link = cls(channel, None, report)
            link.task = asyncio.create_task(drive(await SocketChannel.over(theirs)))
            return link
        with theirs:
            try:
                return cls(channel, _process(theirs, report), report)
            except OSError as error:
                channel.abort()
                report.close()
                raise RolloutError(f"a process that speaks to Ray cannot be started: {error}") from error

    def say(self, command: messages.Command) -> None:
        """To a driver that is gone it is lost."""
        self._channel.send(messages.encode(command))

    async def hear(self) -> messages.Event | None:
        """The next event; None where the driver is gone."""
        frame = await self._channel.receive()
        event = messages.decode_event(frame) if frame is not None else None
        self.connected = self.connected or isinstance(event, messages.Connected)
        return event

    def last_words(self) -> str:
        """What the driver's process said at last."""
        size = os.fstat(self._report.fileno()).st_size
        return last_line(
            os.pread(self._report.fileno(), _MOST_REPORT, max(0, size - _MOST_REPORT)).decode(errors="replace")
        )

    async def aclose(self, *, lost: bool) -> None:
        """Has the driver end its actors, and itself. One that has no cluster, or has `lost` it, is not waited for."""
        self._channel.close()
        if self._process is not None and (lost or not self.connected):
            self._process.kill()
        if self.task is not None:
            await asyncio.wait([self.task], timeout=END_S)
        if (process := self._process) is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                await anyio.to_thread.run_sync(process.wait, END_S)
            if process.poll() is None:
                process.kill()
                process.wait()
        self._channel.abort()
        self._report.close()


def _process(end: socket.socket, report: IO[bytes]) -> subprocess.Popen[bytes]:
    start = {"channel": end.fileno(), "sys_path": [os.path.join(os.getcwd(), place) for place in sys.path]}
    with tempfile.TemporaryFile() as told:
        told.write(json.dumps(start).encode())
        told.seek(0)
        return subprocess.Popen(
            [sys.executable, "-c", boot()],
            stdin=told,
            stdout=report,
            stderr=report,
            pass_fds=(end.fileno(),),
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0")},
            start_new_session=True,
        )

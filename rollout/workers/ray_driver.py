"""What speaks to Ray for the launcher: the only code here that imports it, beside the actor.

It runs in a process of its own. A Ray driver ends its process, without a word that Python could hear, a minute after
the cluster's head has died, and at once when its node's raylet has; it takes SIGTERM, and writes to standard error what
others log. None of this is to happen to an engine. The process ends when the launcher hangs up, and with it its actors.

Where the engine's own process is part of a cluster already, as that of an actor in a Ray-based trainer, it runs as a
task there, so that the workers belong to the trainer's job: they have its runtime environment, and end with it. Then
Ray is neither initialized here nor shut down.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from rollout.workers import ray_messages as messages
from rollout.workers.ray_actor import RolloutWorker
from rollout.workers.ray_reasons import reason
from rollout.workers.socket_channel import SocketChannel

#: Seconds between two questions to the cluster's head, and how long it may take to answer before it counts as gone.
ASK_S = 2.0
HEAD_GONE_S = 30.0

#: How long the cluster's head may take to accept a connection.
_ANSWER_S = 5.0

#: How a conversation in HTTP/2 begins: with these words and settings, of which there are none; and the bytes of the
#: beginning of a frame, of which the fourth says what it is.
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_FRAME, _SETTINGS = 9, b"\4"

#: How long the process may take to end its actors and leave.
_LEAVE_S = 10.0


def main(start: Mapping[str, Any]) -> None:
    """The process. `start` is what `rollout.workers.ray` says."""
    end = socket.socket(fileno=start["channel"])
    end.set_inheritable(False)

    async def drive_it() -> None:
        await drive(await SocketChannel.over(end))

    try:
        asyncio.run(drive_it())
    finally:
        os._exit(0)  # whatever threads Ray has left: nothing of them is of use to anybody


async def drive(channel: SocketChannel) -> None:
    """Carries out what the launcher says, until it hangs up."""
    frame = await channel.receive()
    if frame is None:
        return
    connect = messages.decode_command(frame)
    assert isinstance(connect, messages.Connect)
    try:
        driver = _Driver(channel, connect)
    except Exception as error:  # Ray raises whatever went wrong, in many classes
        channel.send(messages.encode(messages.NotConnected(reason(error))))
        await channel.sent()
        channel.close()
        return
    await driver.serve()


class _Driver:
    """The actors of one launcher."""

    def __init__(self, channel: SocketChannel, connect: messages.Connect) -> None:
        """Connects, unless this process is connected. Raises what Ray raises."""
        import ray

        self._channel = channel
        self._ray = ray
        self._ours = not ray.is_initialized()
        if not self._ours:
            _must_be(connect.address, ray.get_runtime_context().gcs_address)
        else:
            address = connect.address or os.environ.get("RAY_ADDRESS") or "auto"
            _must_answer(address)
            ray.init(
                address=address,
                runtime_env=connect.runtime_env or None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        self._asks: dict[str, Any] = {"num_cpus": connect.num_cpus, "resources": connect.resources}
        options: dict[str, Any] = {"num_cpus": connect.num_cpus, "resources": connect.resources or None}
        if not self._ours and connect.runtime_env:
            options["runtime_env"] = connect.runtime_env
        # Two calls at once: one plays, the other says what it does. It is not made again: the engine asks for another.
        options |= {"scheduling_strategy": "SPREAD", "max_concurrency": 2, "max_restarts": 0}
        self._remote = ray.remote(**options)(RolloutWorker)
        self._actors: dict[int, Any] = {}
        self._plays: dict[int, asyncio.Future[messages.Play]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._works = set[asyncio.Task[None]]()
        """Answers that are being made."""
        context = ray.get_runtime_context()
        here = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        self._say(messages.Connected(here["NodeManagerAddress"], context.gcs_address))

    async def serve(self) -> None:
        """Until the launcher hangs up."""
        watching = asyncio.create_task(self._watch_head())
        try:
            while (frame := await self._channel.receive()) is not None:
                self._carry_out(messages.decode_command(frame))
        finally:
            watching.cancel()
            for work in list(self._works):
                work.cancel()
            if self._ours:  # the head may not answer, and this process is to end whatever comes
                threading.Thread(target=_leave_at_last, daemon=True).start()
            for number in list(self._tasks):
                self._kill(number)
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            if self._ours:
                self._ray.shutdown()
            self._channel.close()

    def _carry_out(self, command: messages.Command) -> None:
        match command:
            case messages.Start(number):
                self._tasks[number] = asyncio.create_task(self._live(number))
            case messages.Play(number) if number in self._plays and not self._plays[number].done():
                self._plays[number].set_result(command)
            case messages.AskLacking(number):
                self._beside(self._tell_lacking(number))
            case messages.Trace(number) if number in self._actors:
                self._beside(self._trace(number))
            case messages.Kill(number):
                self._kill(number)

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._works.add(task)
        task.add_done_callback(self._works.discard)

    async def _live(self, number: int) -> None:
        """An actor's life."""
        how = ""
        try:
            self._plays[number] = asyncio.get_running_loop().create_future()
            # In a thread: it waits for the head, where that is slow. A handle that nobody takes ends its actor.
            actor = self._actors[number] = await asyncio.to_thread(self._remote.remote)
            placed = await actor.introduce.remote()
            self._say(messages.Placed(number, **placed))
            play = await self._plays[number]
            how = await actor.play.remote(play.host, play.port, number, play.stands)
        except asyncio.CancelledError:
            how = "it was ended by the engine"
        except Exception as error:  # as above
            how = reason(error)
        finally:
            self._end(number)
            self._tasks.pop(number, None)
            self._say(messages.Over(number, how))

    async def _tell_lacking(self, number: int) -> None:
        """Says what no node has at all, however idle: of a typo one waits in vain."""
        asks = {"CPU": self._asks["num_cpus"], **self._asks["resources"]}
        with contextlib.suppress(Exception):  # the head does not answer: it is watched
            nodes = [node["Resources"] for node in await asyncio.to_thread(self._ray.nodes) if node["Alive"]]
            lacking = [name for name, count in asks.items() if all(node.get(name, 0) < count for node in nodes)]
            self._say(messages.Lacking(number, lacking))

    async def _trace(self, number: int) -> None:
        with contextlib.suppress(Exception):  # it is gone, or something holds its interpreter
            self._say(messages.Traced(number, await self._actors[number].trace.remote()))

    def _kill(self, number: int) -> None:
        task = self._tasks.get(number)
        if task is not None:
            task.cancel()

    def _end(self, number: int) -> None:
        self._plays.pop(number, None)
        actor = self._actors.pop(number, None)
        if actor is not None:
            with contextlib.suppress(Exception):  # it has ended, or the cluster has
                self._ray.kill(actor, no_restart=True)

    async def _watch_head(self) -> None:
        """Says when the head is gone. A head that is restarted with its memory (by Redis) comes back sooner."""
        while True:
            try:
                await asyncio.wait_for(asyncio.to_thread(self._ray.nodes), HEAD_GONE_S)
            except TimeoutError:
                self._say(messages.Lost(f"its head has not answered for {HEAD_GONE_S:g} s"))
                return
            except Exception as error:  # as above
                self._say(messages.Lost(reason(error)))
                return
            await asyncio.sleep(ASK_S)

    def _say(self, event: messages.Event) -> None:
        self._channel.send(messages.encode(event))


def _must_be(address: str | None, cluster: str) -> None:
    """Raises ValueError where the cluster that this process is part of is not the one that is named."""
    if address not in (None, "auto", cluster):
        raise ValueError(f"this process is part of the cluster at {cluster} already: leave ray_address out")


def _must_answer(address: str) -> None:
    """Raises ConnectionError where no head listens at a cluster's address: Ray itself tries for minutes."""
    if address.startswith("ray://"):
        raise ValueError(f"RAY_ADDRESS {address} is Ray Client's: name the cluster's own by ray_address (HOST:6379)")
    if address == "auto":
        with contextlib.suppress(ImportError):  # no part of what Ray promises
            from ray._private.services import canonicalize_bootstrap_address

            address = canonicalize_bootstrap_address(None) or address
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("a cluster's address is HOST:PORT, and its head listens at 6379 unless it was told otherwise")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S) as head:
            speaks = _speaks_grpc(head)
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"nothing answers at {address} ({getattr(error, 'strerror', None) or error}); start a head by "
            "`ray start --head`, or name its address by ray_address"
        ) from error
    if not speaks:
        raise ConnectionError(
            f"what listens at {address} is no Ray head: its port is 6379, unless it was told otherwise"
        )


def _speaks_grpc(connection: socket.socket) -> bool:
    """Whether a head may be behind it, which greets with its settings, as all that speaks HTTP/2 does."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return True
    try:
        connection.sendall(_HTTP2)
        return connection.makefile("rb").read(_FRAME)[3:4] == _SETTINGS
    except OSError:  # it hangs up, or is silent
        return False


def _leave_at_last() -> None:
    time.sleep(_LEAVE_S)
    os._exit(0)


def boot() -> str:
    """What the process begins with. `sys.path` comes first: this package may be found only by the caller's."""
    return (
        "import json, sys; start = json.load(sys.stdin); sys.path[:] = start['sys_path']; "
        f"from {__name__} import main; main(start)"
    )

"""A worker that is a Ray actor: it says who it is, connects to its engine, and plays until that hangs up.

Ray's driver calls it three times. `introduce` gives the secret that the actor has made for itself, so that it stands in
no argument, and the versions that it runs. `play` connects over the engine's address and serves the connection as a
process of the engine's own machine would. `trace` says meanwhile what its threads are doing.

The process ends when its engine hangs up, when Ray ends the actor, and when the node's raylet is gone: nobody would
end it then.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any

from rollout.workers.handshake import Refused, new_secret
from rollout.workers.rendezvous import connect
from rollout.workers.worker import log_to, serve

#: How long the process may take to leave once it has nothing to play; Ray ends it sooner.
LEAVE_S = 5.0

#: Seconds between two looks whether the raylet is there.
_LOOK_S = 0.5


class RolloutWorker:
    """The actor. Ray's name for it, in `ray list actors`, is this class's."""

    def __init__(self) -> None:
        self._secret = new_secret()

    def introduce(self) -> dict[str, Any]:
        """The fields of `rollout.workers.ray_messages.Placed` but its number."""
        import ray

        host: str = ray.util.get_node_ip_address()
        python = platform.python_version()
        return {"secret": self._secret, "python": python, "engine": engine_version(), "host": host, "pid": os.getpid()}

    def play(self, host: str, port: int, number: int, stands: Mapping[str, Any]) -> str:
        """Plays what the engine at that address says; returns how it ended."""
        _stand(stands)
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        try:
            return asyncio.run(_play(host, port, number, self._secret, structlog=stands["structlog"]))
        finally:
            threading.Thread(target=_leave, daemon=True).start()

    def trace(self) -> str:
        """What its threads are doing, as faulthandler writes it."""
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            return file.read().decode(errors="replace")


async def _play(host: str, port: int, number: int, secret: bytes, *, structlog: bool) -> str:
    # No method: with one that is a coroutine Ray would call all of them on an event loop of its own.
    try:
        channel = await connect(host, port, number, secret)
    except (Refused, OSError) as error:
        return f"it cannot connect to the engine at {host}:{port} (ray_listen): {error or type(error).__name__}"
    with log_to(channel, structlog=structlog):
        await serve(channel)
    return "it left"


def engine_version() -> str:
    """Of this package, as it is imported here. A room imports no roof, but it stands under one."""
    return str(vars(sys.modules["rollout"])["__version__"])


def stands(*, structlog: bool, moves: bool) -> dict[str, Any]:
    """How this process stands: an actor stands so, too, as far as its host has the same folders.

    `moves` says whether it goes to this process's folder: not where a runtime environment brings one.
    """
    folder = os.getcwd()
    places = [os.path.join(folder, place) for place in sys.path]
    return {"sys_path": places, "folder": folder if moves else None, "structlog": structlog}


def _stand(stands: Mapping[str, Any]) -> None:
    """What hosts share, such as a home by NFS, is found there as it is found here; behind what is there already."""
    known = set(sys.path)
    sys.path += [place for place in stands["sys_path"] if place not in known and os.path.exists(place)]
    folder = stands["folder"]
    if folder is not None and os.path.isdir(folder):
        os.chdir(folder)


def _end_with(raylet: int) -> None:
    while os.getppid() == raylet:
        time.sleep(_LOOK_S)
    os._exit(1)


def _leave() -> None:
    time.sleep(LEAVE_S)
    os._exit(0)

"""What an engine serves its rollouts by: one endpoint for a process, from the first rollout that wants one."""

from __future__ import annotations

import asyncio
import contextvars
import importlib.util
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Self

import anyio
import anyio.to_thread

from rollout.agent import Endpoint
from rollout.config import EngineConfig
from rollout.errors import ConfigError
from rollout.log import get_logger
from rollout.play.model import Asking, RolloutModel
from rollout.proxy.guard import Guard, host_of
from rollout.proxy.listen import base_url, listen, serve
from rollout.proxy.sessions import Keys, Served

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_log = get_logger(__name__)


class HttpEndpoints:
    """Serves rollouts' models over HTTP, each under a key of its own: `rollout.play.model.Endpoints`.

    async with HttpEndpoints(config) as endpoints:
        player = await Player.open(config, weights, endpoints=endpoints)
    """

    def __init__(self, config: EngineConfig, *, plays: bool = True) -> None:
        """`plays` is false where other processes play, so that this one may never need it."""
        self.keys = Keys()
        self._config = config
        self._plays = plays
        self._url: str | None = None
        self._listener: socket.socket | None = None
        self._of = dict[Asking, tuple[str, Served, Endpoint]]()
        self._lock = threading.Lock()  # an agent's plain `run` is in a thread, and so is what it asks here
        self._loop: asyncio.AbstractEventLoop | None = None
        """While it is entered."""
        self._context = contextvars.Context()
        self._tasks = set[asyncio.Task[None]]()

    def __repr__(self) -> str:
        return f"<HttpEndpoints {self._url or 'not opened'}, {self.keys!r}>"

    async def __aenter__(self) -> Self:
        """Raises ConfigError where it is wanted at an address that cannot be listened on."""
        self._loop = asyncio.get_running_loop()
        # What is served is no rollout's: an agent's own variables are not seen in it.
        self._context = contextvars.copy_context()
        default = EngineConfig()
        wanted = self._config.proxy_host, self._config.proxy_port, self._config.proxy_address
        # Else it is opened by the first rollout that asks for it, and then nothing can be wrong with the address.
        if self._plays and wanted != (default.proxy_host, default.proxy_port, default.proxy_address):
            self._url = self._listen()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Ends what is under way."""
        self._loop = None
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            with anyio.CancelScope(shield=True):
                await asyncio.wait(self._tasks)
        if self._listener is not None:
            self._listener.close()  # where nothing came to serve it

    def open(self, model: RolloutModel) -> Endpoint:
        """Serves a rollout's model, under a key of its own. From any thread. Raises ConfigError."""
        asking = model.asking
        with self._lock:
            if (opened := self._of.get(asking)) is not None:
                return opened[2]
            if self._url is None:
                self._url = self._listen()
            served = Served(asking, self._config, start=self._start_here)
            key = self.keys.add(served)
            endpoint = Endpoint(base_url=self._url, api_key=key, model=asking.session.server.model)
            self._of[asking] = key, served, endpoint
            return endpoint

    def close(self, model: RolloutModel) -> None:
        """The rollout has ended: what it has under way is cancelled, and its key is refused."""
        with self._lock:
            key, served, _ = self._of.pop(model.asking)
            self.keys.remove(key)
        served.turns.close()

    def _listen(self) -> str:
        """Binds a socket at once, so that whoever is told the address reaches it, and has it served."""
        missing = next((name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None), None)
        if missing is not None:
            raise ConfigError(
                f"to serve a rollout's model over HTTP {missing} is needed: pip install 'rollout-engine[proxy]'"
            )
        config = self._config
        self._listener = listener = listen(
            config.proxy_host, config.proxy_port, config.processes if config.processes > 1 else 0
        )
        url = base_url(listener, config.proxy_host, config.proxy_address)

        async def serving() -> None:
            try:
                # In a thread: importing takes long for a loop that plays. Whoever connects meanwhile waits.
                app = await anyio.to_thread.run_sync(self._make_app, url)
                _log.info("proxy_listens", url=url)
                await serve(app, listener)
            except Exception as error:  # rollouts that ask nothing by HTTP go on
                _log.error("proxy_ended", exc_info=error)

        self._start(serving)
        return url

    def _make_app(self, url: str) -> ASGIApp:
        import uvicorn  # noqa: F401  # so that it is imported here, too

        from rollout.proxy.app import create_app

        return create_app(self.keys, Guard({host_of(url.partition("://")[2])}), self._config.proxy_body_bytes)

    def _start(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Starts a task, from any thread. Raises ConfigError."""
        if self._loop is None:
            raise ConfigError("this engine is closed: nothing is served any more")
        self._loop.call_soon_threadsafe(self._start_here, function)

    def _start_here(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Starts a task, from the loop's own thread."""
        if self._loop is not None:  # else what asked for it has ended meanwhile
            # Created in a context of ours: what is created in a rollout's own ends with that rollout.
            task = self._context.copy().run(self._loop.create_task, function())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

"""The embedded model on a port: what `rollout serve` runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

import uvicorn

from rollout.errors import ConfigError
from transports.embedded import MODEL_DIR, NOT_A_MODEL
from transports.embedded.app import Dialect, create_app
from transports.embedded.sampling import LogprobsMode

DIALECTS: tuple[str, ...] = get_args(Dialect)


def run(
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    dialect: str = "vllm",
    model_dir: Path | None = None,
    served_name: str = "rollout-tiny",
    logprobs_mode: str | None = None,
    api_key: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serves until it is interrupted; tells `say` what and where as soon as it does. Port 0 takes a free one.

    `logprobs_mode` is vLLM's: `raw_logprobs` before temperature and filters, `processed_logprobs` after them; None is
    as the dialect's server does it by default. Where an `api_key` is given, clients must send it. Raises
    KeyboardInterrupt at the end, and ConfigError for a dialect, a mode or a folder that is none, and an address that
    cannot be listened on.
    """
    if dialect not in DIALECTS:
        raise ConfigError(f"--dialect is {DIALECTS[0]}, {DIALECTS[1]} or {DIALECTS[2]}, not {dialect!r}")
    if logprobs_mode is not None and logprobs_mode not in get_args(LogprobsMode):
        raise ConfigError(f"--logprobs-mode is {' or '.join(get_args(LogprobsMode))}, not {logprobs_mode!r}")
    if not served_name:
        raise ConfigError("--served-model-name is the name that clients ask for: give one")
    if api_key is not None and not api_key.strip():
        raise ConfigError("--api-key is empty: give a key, or leave it out")
    folder = model_dir or MODEL_DIR
    # Before the model is loaded: a port that is taken is said at once.
    with _listening(host, port) as listener:
        try:
            app = create_app(
                folder,
                served_name=served_name,
                dialect=cast(Dialect, dialect),
                logprobs_mode=cast(LogprobsMode | None, logprobs_mode),
                api_key=api_key,
            )
        except NOT_A_MODEL as error:
            raise ConfigError(f"no model to serve in {str(folder)!r}: {error}") from error
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
        shown = f"[{host}]" if ":" in host else host
        where = f"http://{shown}:{listener.getsockname()[1]}"
        ready = f"serving {served_name} ({dialect} dialect) on {where}"
        _Server(config, lambda: say(ready)).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port is a number from 0 (any that is free) to 65535, not {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else str(error).rstrip(".")
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}; give another --host or --port") from error


class _Server(uvicorn.Server):
    """Tells when it serves."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

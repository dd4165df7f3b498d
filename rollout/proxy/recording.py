"""A recorder on a port, in front of a server: what `rollout proxy` runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from rollout.config import check_config
from rollout.errors import ConfigError, RolloutError
from rollout.log import get_logger
from rollout.observe.stats import Played
from rollout.play.logprobs import warn_of_logprobs
from rollout.play.player import Player
from rollout.play.served import ServedModel
from rollout.process import open_files
from rollout.proxy.app import create_app
from rollout.proxy.guard import Guard, host_of
from rollout.proxy.listen import base_url, is_loopback, listen, serve
from rollout.proxy.record_folder import RecordFolder
from rollout.proxy.recorder import Recorder, RecorderSettings, recording
from rollout.proxy.sessions_api import Api
from rollout.servers.fleet import Fleet, ServerState
from rollout.servers.weights import Weights
from rollout.store.settings import RunSettings

_log = get_logger(__name__)


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """A recorder that is being served."""

    recorder: Recorder
    url: str
    """Where agents find it."""
    model: ServedModel
    """The model that it stands in front of."""
    played: Callable[[], Played]
    """What it took so far."""
    states: Callable[[], list[ServerState]]
    """The servers behind it."""


@asynccontextmanager
async def recording_on(
    settings: RunSettings,
    recorder_settings: RecorderSettings,
    output: Path | None,
    *,
    token: str | None = None,
    on_failed: Callable[[RolloutError], None] = lambda error: None,
) -> AsyncIterator[Recording]:
    """Records until it is left. `on_failed` is told what keeps it from going on.

    Raises ConfigError, UsageError for a folder that cannot be written, ServerError.
    """
    config = settings.engine_config()
    check_config(config)
    ours = is_loopback(config.proxy_host)
    if not ours and token is None:
        raise ConfigError(
            f"--host {config.proxy_host} is reached from other machines, and whoever reaches it could read every "
            "session: name the variable that holds a token by --token-env"
        )
    recorder_settings = msgspec.structs.replace(recorder_settings, open_unknown=ours)
    open_files.raise_limit(2 * recorder_settings.most_sessions)
    # First: a port that is taken is said at once.
    listener = listen(config.proxy_host, config.proxy_port, named="--host or --port")
    try:
        player = await Player.open(config, Weights(), on_gone=lambda error: _gone(error, player.fleet))
        try:
            warn_of_logprobs(player.model.info, config)
            settings = msgspec.structs.replace(settings, model=player.model.info.model)
            folder = await anyio.to_thread.run_sync(RecordFolder.open, output, settings, player.model.info.model)
            try:
                async with (
                    recording(
                        player.model, config, recorder_settings, folder, on_failed=on_failed, on_turn=player.count_turn
                    ) as recorder,
                    anyio.create_task_group() as tasks,
                ):
                    url = base_url(listener, config.proxy_host, config.proxy_address)
                    api = Api(recorder, url, token, config.proxy_body_bytes)
                    guard = Guard({host_of(url.partition("://")[2])})
                    app = create_app(recorder, guard, config.proxy_body_bytes, api.routes())
                    tasks.start_soon(serve, app, listener)
                    yield Recording(
                        recorder=recorder,
                        url=url,
                        model=player.model,
                        played=player.played,
                        states=lambda: player.fleet.states,
                    )
                    tasks.cancel_scope.cancel()
            finally:
                folder.close()
        finally:
            await player.aclose()
    finally:
        listener.close()


def _gone(error: RolloutError, fleet: Fleet) -> None:
    """A recorder outlives its server: requests are told to come again until one is back."""
    _log.warning("no_server", error=str(error))
    fleet.give_up()

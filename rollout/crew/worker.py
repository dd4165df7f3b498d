"""One process of a crew: plays what it is told, and says how it ended. Ends with the engine, however that ends."""

from __future__ import annotations

import asyncio
import logging
import pickle
import signal
import socket
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import msgspec
import structlog

from rollout.crew import wire
from rollout.crew.launch import Channel
from rollout.errors import RolloutError
from rollout.fleet import Fleet
from rollout.lag import spared_collector
from rollout.player import Player

#: Seconds between two words of where it stands.
BEAT_S = 0.25

#: Between so many commands the loop looks at its timers and sockets: starting a rollout takes 60 µs.
_COMMANDS_AT_ONCE = 64


def main(end: socket.socket) -> None:
    """The process: serves one end of a connection."""
    # Control-C in a terminal goes to every process of it; the engine says what is to be done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def serve_it() -> None:
        channel = await Channel.over(end)
        _log_to(channel)
        await serve(channel)

    anyio.run(serve_it)


async def serve(channel: Channel) -> None:
    """Plays what comes over the channel until it is closed."""
    frame = await channel.receive()
    if frame is None:
        return
    setup = wire.decode_command(frame)
    assert isinstance(setup, wire.Setup)
    try:
        async with Player(setup.config, _env_of(setup)) as player:
            channel.send(wire.encode(wire.Ready()))
            with spared_collector():
                await _Serving(channel, player).serve()
    except RolloutError as error:
        channel.send(wire.encode(wire.NotReady(type(error).__name__, str(error))))
    await channel.sent()
    channel.close()


def _env_of(setup: wire.Setup) -> Any:
    try:
        return pickle.loads(setup.make_env)
    except Exception as error:  # what importing the user's module raises
        raise RolloutError(f"a process cannot load the environment: {type(error).__name__}: {error}") from error


class _Serving:
    """The commands of one channel, carried out."""

    def __init__(self, channel: Channel, player: Player) -> None:
        self._channel = channel
        self._player = player
        self._scopes: dict[int, anyio.CancelScope] = {}

    async def serve(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._beat)
            taken = 0
            while (frame := await self._channel.receive()) is not None:
                self._carry_out(wire.decode_command(frame), group)
                taken += 1
                if taken % _COMMANDS_AT_ONCE == 0:
                    await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()

    def _carry_out(self, command: wire.Command, group: anyio.abc.TaskGroup) -> None:
        match command:
            case wire.Play():
                scope = self._scopes[command.number] = anyio.CancelScope()
                group.start_soon(self._play, command, scope)
            case wire.Cancel() if command.number in self._scopes:
                self._scopes[command.number].cancel()
            case wire.Follow():
                self._player.weights.follow(command.weights)
                transport = self._player.model.transport
                if command.servers is not None and isinstance(transport, Fleet):
                    transport.follow(command.servers)
                self._say(wire.Followed(command.number))
            case wire.Stop():
                self._player.stop()

    async def _play(self, command: wire.Play, scope: anyio.CancelScope) -> None:
        episode = self._player.episode(command.job, evaluation=command.evaluation)
        with scope:
            await episode.play()
        del self._scopes[command.number]
        self._say(wire.ended(command.number, episode.rollout, self._player.played()))
        await self._channel.sent()

    async def _beat(self) -> None:
        while True:
            self._say(wire.Beat(self._player.played()))
            await anyio.sleep(BEAT_S)

    def _say(self, event: wire.Event) -> None:
        self._channel.send(wire.encode(event))


def _log_to(channel: Channel) -> None:
    """Events go to the engine's log."""

    loop = asyncio.get_running_loop()

    def send(logger: object, method: str, event: Any) -> Any:
        fields = msgspec.to_builtins(dict(event), enc_hook=str, str_keys=True)
        name = str(fields.pop("event", ""))
        # A thread may log, too; only the loop's own may write to the channel.
        loop.call_soon_threadsafe(channel.send, wire.encode(wire.Logged(method, name, fields)))
        raise structlog.DropEvent

    structlog.configure(
        processors=[structlog.processors.format_exc_info, send],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=False,
    )

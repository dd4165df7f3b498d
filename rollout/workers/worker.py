"""One process of a pool: plays what it is told, and says how it ended. Ends with the engine, however that ends."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import pickle
import traceback
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
import msgspec

from rollout.door import error_text, type_name
from rollout.errors import RolloutError, UserCodeFailed
from rollout.log import UnlockedHandler, event_of, get_logger, handled_by
from rollout.loop.collector import infrequent_full_gc
from rollout.memo import Memo
from rollout.observe.exporting import exporting
from rollout.play.player import PlayedEnv, Player
from rollout.process.threads import ThreadsExhausted
from rollout.proxy.endpoints import HttpEndpoints
from rollout.records import Failure, FailureKind, Job, Rollout
from rollout.servers.weights import Weights
from rollout.workers import wire
from rollout.workers.channel import Channel

#: Seconds between two words of where it stands.
BEAT_S = 0.25

#: Between so many commands the loop looks at its timers and sockets: starting a rollout takes 60 µs.
_COMMANDS_AT_ONCE = 64

#: Bytes that may wait for the engine before beats and events of the log are left out.
MOST_UNSENT = 2**24

#: The length of one event of the log, in bytes, and of one of its fields, in characters, where that is longer.
MOST_EVENT = 2**20
MOST_TEXT = 20_000

#: Environments other than the engine's own that are kept loaded.
MOST_OTHERS = 64

_log = get_logger(__name__)


async def serve(channel: Channel, load: Callable[[bytes], Any] = pickle.loads) -> None:
    """Plays what comes over the channel until it is closed. `load` gives what makes environments."""
    frame = await channel.receive()
    if frame is None:
        return
    setup = wire.decode_command(frame)
    assert isinstance(setup, wire.Setup)

    def worn(error: RolloutError) -> None:
        # Whether a server is left is the engine's to say, which has connections of its own.
        if isinstance(error, ThreadsExhausted):
            channel.send(wire.encode(wire.Worn(str(error))))

    def failed(error: RolloutError) -> None:
        channel.send(wire.encode(_environment_failed(error)))

    def sets_up() -> None:
        channel.send(wire.encode(wire.SetupBegins()))

    try:
        make_env = _loaded(setup.make_env, load)
        async with exporting(setup.config.tracing), HttpEndpoints(setup.config) as endpoints:
            player = await Player.open(
                setup.config, Weights(), on_gone=worn, on_failed=failed, on_setup=sets_up, endpoints=endpoints
            )
            async with aclosing(player):
                serving = _Serving(channel, player, player.of(make_env), load)
                channel.send(wire.encode(wire.Ready()))
                with infrequent_full_gc():
                    await serving.serve()
    except RolloutError as error:
        channel.send(wire.encode(wire.NotReady(type_name(error), error_text(error))))
    await channel.sent()
    channel.close()


def _loaded(make_env: bytes, load: Callable[[bytes], Any]) -> Any:
    """What makes environments. Raises UserCodeFailed."""
    try:
        return load(make_env)
    except BaseException as error:  # what importing the user's module raises, sys.exit() included
        _log.warning("environment_not_loaded", exc_info=error)
        raise UserCodeFailed(
            f"a worker process cannot load the environment: {type_name(error)}: {error_text(error)}"
        ) from error


def _environment_failed(error: Exception) -> wire.EnvironmentFailed:
    text = "".join(traceback.format_exception(error.__cause__ or error))
    return wire.EnvironmentFailed(_sendable(error_text(error)), _sendable(text))


class Other:
    """An environment other than the engine's own."""

    def __init__(self) -> None:
        self.env: PlayedEnv | None = None
        """None until it is loaded, and where it cannot be."""
        self.over = anyio.Event()


class _Serving:
    """The commands of one channel, carried out."""

    def __init__(self, channel: Channel, player: Player, env: PlayedEnv, load: Callable[[bytes], Any]) -> None:
        self._channel = channel
        self._player = player
        self._env = env
        self._load = load
        self._others = Memo[bytes, "Other"](MOST_OTHERS)
        """Environments other than the engine's own."""
        self._scopes: dict[int, anyio.CancelScope] = {}
        self._ending = False

    async def serve(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._beat)
            taken = 0
            while (frame := await self._channel.receive()) is not None:
                self._carry_out(_command(frame), group)
                taken += 1
                if taken % _COMMANDS_AT_ONCE == 0:
                    await anyio.lowlevel.checkpoint()
            self._ending = True
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
                self._player.fleet.follow(command.servers)
                self._say(wire.Followed(command.number))
            case wire.Stop():
                self._player.stop()

    async def _play(self, command: wire.Play, scope: anyio.CancelScope) -> None:
        job = command.job
        rollout = job.rollout()
        try:
            with scope:
                env = self._env if command.make_env is None else await self._other(command.make_env)
                episode = env.episode(job, evaluation=command.evaluation)
                rollout = episode.rollout
                await episode.play()
        except BaseException as error:
            # The engine waits for an answer: whatever ends a rollout in its own way is answered as a failure of it.
            if self._ending:
                raise
            _log.error("internal_error", rollout=rollout.id, exc_info=error)
            message = f"{type_name(error)}: {error_text(error)}"
            rollout.failure = Failure(kind=FailureKind.INTERNAL, message=message, error=type_name(error))
        finally:
            del self._scopes[command.number]
        # What was logged of it goes first, since the loop has it to send: with this end the run may end.
        await anyio.lowlevel.cancel_shielded_checkpoint()
        self._say_ended(command.number, job, rollout)
        await self._channel.sent()

    async def _other(self, make_env: bytes) -> PlayedEnv:
        """An environment other than the engine's own, which is imported in a thread. Raises UserCodeFailed."""
        other = self._others.get(make_env)
        if other is not None:
            await other.over.wait()
        else:
            other = self._others[make_env] = Other()
            try:
                # In a thread: an import may take long, and a loop that stands still is taken for one that hangs.
                with anyio.CancelScope(shield=True):
                    other.env = await anyio.to_thread.run_sync(lambda: self._player.of(_loaded(make_env, self._load)))
            except Exception as error:  # what looking at it raises, too
                self._say(_environment_failed(error))
            finally:
                other.over.set()
        while other.env is None:
            await anyio.sleep_forever()  # the run is over: the engine cancels this
        return other.env

    def _say_ended(self, number: int, job: Job, rollout: Rollout) -> None:
        """A rollout that cannot be sent costs itself: it comes without what was played."""
        played = self._player.played()
        bare = job.rollout()
        bare.task, bare.timing = {}, rollout.timing
        try:
            self._channel.send(wire.encode(wire.ended(number, rollout, played)))
        except Exception as error:
            message = f"it cannot be sent to the engine: {error_text(error)}"
            _log.error("rollout_not_sent", rollout=rollout.id, exc_info=error)
            bare.failure = Failure(kind=FailureKind.INTERNAL, message=message, error=type_name(error))
            self._say(wire.Ended(number, bare, [], played))

    async def _beat(self) -> None:
        while True:
            if self._channel.unsent < MOST_UNSENT:  # an engine that stands still needs no beats
                self._say(wire.Beat(self._player.played()))
            await anyio.sleep(BEAT_S)

    def _say(self, event: wire.Event) -> None:
        self._channel.send(wire.encode(event))


def _command(frame: bytes | bytearray) -> wire.Command:
    """Raises msgspec.MsgspecError, which ends this process: the engine starts another."""
    try:
        return wire.decode_command(frame)
    except msgspec.MsgspecError as error:
        _log.error("command_not_read", exc_info=error)
        raise


class _ToEngine(UnlockedHandler):
    """Events go to the engine's log. Only the loop writes to the channel, so there is nothing to lock."""

    def __init__(self, say: Callable[[str, str, dict[str, Any]], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        event, fields = event_of(record)
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
        self._say(record.levelname.lower(), event, fields)


def log_to(channel: Channel, *, structlog: bool) -> contextlib.AbstractContextManager[None]:
    """Has the engine log what is logged here, until the block is left; `structlog`: what environments log by it, too.

    Elsewhere that stays as the environment, or the trainer's script, has it.
    """
    loop = asyncio.get_running_loop()

    def say(level: str, event: str, fields: dict[str, Any]) -> None:
        frame = _frame(level, event, fields)
        # A thread may log, too; only the loop's own may write to the channel. After the loop's end nobody listens.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(send_frame, frame)

    def send_frame(frame: bytes) -> None:
        if channel.unsent < MOST_UNSENT:
            channel.send(frame)

    if structlog:
        _take_structlog(say)
    return handled_by(_ToEngine(say), logging.INFO)


def _take_structlog(say: Callable[[str, str, dict[str, Any]], None]) -> None:
    """Has events of structlog said, where it is installed: nothing of ours needs it here."""
    try:
        structlog = importlib.import_module("structlog")
    except ImportError:
        return

    def send(logger: object, method: str, event: Any) -> Any:
        fields = dict(event)
        say(method, fields.pop("event", ""), fields)
        raise structlog.DropEvent

    structlog.configure(
        processors=[structlog.processors.format_exc_info, send],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=False,
    )


def _frame(level: str, event: object, fields: dict[Any, Any]) -> bytes:
    """An event's frame. What is no data, or too long, goes as text that can be sent."""
    try:
        plain = msgspec.to_builtins(fields, enc_hook=str, str_keys=True)
        frame = wire.encode(wire.Logged(level, str(event), plain))
        if len(frame) < MOST_EVENT:
            return frame
    except Exception:  # any object may be logged, and each may raise when it is looked at
        pass
    texts = {_sendable(name): _sendable(value) for name, value in fields.items()}
    return wire.encode(wire.Logged(level, _sendable(event), texts))


def _sendable(value: object) -> str:
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:
        text = f"a {type_name(value)} that cannot be shown"
    if len(text) > MOST_TEXT:
        text = f"{text[: MOST_TEXT // 2]} ... {text[-MOST_TEXT // 2 :]}"  # a traceback's end says most
    return text.encode(errors="replace").decode()

"""What an engine and its processes say to each other: msgpack, one message a frame, in order.

msgpack has no integers beyond 64 bits. A message that holds one, in a task or in a message of the conversation, goes as
JSON: no frame of msgpack begins as one of JSON does.

Nothing here is of this machine but `Setup.make_env`, which Python's pickle finds by name: what carries the frames may
be a pair of sockets, or a connection to another host.
"""

from __future__ import annotations

from array import array
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import msgspec

from rollout.chat.messages import Message
from rollout.config import EngineConfig
from rollout.observe.stats import Played
from rollout.records import Job, Rollout
from rollout.request import IDS
from rollout.servers.fleet import FleetState
from rollout.servers.weights import WeightsState
from rollout.token_fields import Blob
from rollout.tokens.trajectory import LOGPROBS, Logprobs, TokenIds


class Setup(msgspec.Struct, tag=True):
    """The first command: what is played, and on what."""

    config: EngineConfig
    make_env: bytes
    """Pickled."""


class Play(msgspec.Struct, tag=True):
    """Play a rollout."""

    number: int
    """The rollout's, in what follows."""
    job: Job
    evaluation: bool
    make_env: bytes | None = None
    """Pickled; None is that of `Setup`."""


class Cancel(msgspec.Struct, tag=True):
    """End a rollout now. It is answered as every other."""

    number: int


class Follow(msgspec.Struct, tag=True):
    """Stand as the engine does: its weights, its servers. Answered by `Followed`."""

    number: int
    weights: WeightsState
    servers: FleetState


class Stop(msgspec.Struct, tag=True):
    """Rollouts end after their current turn."""


Command = Setup | Play | Cancel | Follow | Stop


class Ready(msgspec.Struct, tag=True):
    """Connected, and waiting for rollouts."""


class NotReady(msgspec.Struct, tag=True):
    """The process could not begin, and ends."""

    error: str
    """Name of an error of `rollout.errors`."""
    message: str


class Ended(msgspec.Struct, tag=True):
    """A rollout that was played to its end, or cancelled."""

    number: int
    rollout: Rollout
    """Without its task, which the engine has, and its messages."""
    said: list[int | Message]
    """Its messages; those that are on the tree by their nodes' numbers, so that no text goes twice."""
    played: Played


class Beat(msgspec.Struct, tag=True):
    """Where the process stands, now and then."""

    played: Played


class Worn(msgspec.Struct, tag=True):
    """The process plays on, but is to be replaced once its rollouts have ended."""

    why: str


class SetupBegins(msgspec.Struct, tag=True):
    """What environments share is being set up, and is to be left at the end: the process may take its time then."""


class EnvironmentFailed(msgspec.Struct, tag=True):
    """An environment's setup failed, or it cannot be loaded: the run ends. Sent before what ends of it."""

    message: str
    traceback: str


class Followed(msgspec.Struct, tag=True):
    """`Follow` was carried out: what is sent from now on is sent under it."""

    number: int


class Logged(msgspec.Struct, tag=True):
    """An event of the process's log."""

    level: str
    event: str
    fields: dict[str, Any]


Event = Ready | NotReady | Ended | Beat | Worn | SetupBegins | EnvironmentFailed | Followed | Logged


def ended(number: int, rollout: Rollout, played: Played) -> Ended:
    """The message for a rollout, which is of no other use then: it is emptied for the way."""
    node_of = {id(node.message): at for at, node in enumerate(rollout.nodes) if node.message is not None}
    said: list[int | Message] = [node_of.get(id(message), message) for message in rollout.messages]
    rollout.messages, rollout.task = [], {}
    return Ended(number, rollout, said, played)


def restored(message: Ended, task: Mapping[str, Any]) -> Rollout:
    """The rollout as it was in the process that played it."""
    rollout = message.rollout
    rollout.task = task
    for said in message.said:
        found = rollout.nodes[said].message if isinstance(said, int) else said
        assert found is not None, "`ended` names nodes that have a message"
        rollout.messages.append(found)
    return rollout


def _enc_hook(value: Any) -> Any:
    if isinstance(value, array):
        return value.tobytes()
    if isinstance(value, Blob):
        return value.data
    raise NotImplementedError(f"a {type(value).__name__} cannot be sent to a process")


def _dec_hook(kind: Any, value: Any) -> Any:
    if isinstance(value, str):  # JSON's form of bytes
        value = b64decode(value)
    if kind is TokenIds:
        return TokenIds(IDS, value)
    if kind is Logprobs:
        return Logprobs(LOGPROBS, value)
    if kind is Blob:
        return Blob(value)
    raise NotImplementedError(str(kind))


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_enc_hook)
_JSON_ENCODER = msgspec.json.Encoder(enc_hook=_enc_hook)
_COMMANDS = msgspec.msgpack.Decoder(Command, dec_hook=_dec_hook)
_JSON_COMMANDS = msgspec.json.Decoder(Command, dec_hook=_dec_hook)
_EVENTS = msgspec.msgpack.Decoder(Event, dec_hook=_dec_hook)
_JSON_EVENTS = msgspec.json.Decoder(Event, dec_hook=_dec_hook)


def encode(message: Command | Event) -> bytes:
    """A frame. Raises what msgspec and the objects themselves raise where something is no plain data."""
    try:
        return _ENCODER.encode(message)
    except OverflowError:
        return _JSON_ENCODER.encode(message)


def decode_command(frame: bytes | bytearray) -> Command:
    """What an engine said. Raises msgspec.MsgspecError."""
    try:
        command: Command = (_JSON_COMMANDS if frame[:1] == b"{" else _COMMANDS).decode(frame)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from error
    return command


def decode_event(frame: bytes | bytearray) -> Event:
    """What a process said. Raises msgspec.MsgspecError."""
    try:
        event: Event = (_JSON_EVENTS if frame[:1] == b"{" else _EVENTS).decode(frame)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from error
    return event

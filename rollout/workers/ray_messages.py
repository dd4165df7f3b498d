"""What the Ray launcher and its driver say to each other: msgpack, one message a frame, in order."""

from __future__ import annotations

from typing import Any

import msgspec


class Connect(msgspec.Struct, tag=True):
    """The first command: which cluster, and what each actor asks for."""

    address: str | None
    num_cpus: float
    resources: dict[str, float]
    runtime_env: dict[str, Any]


class Start(msgspec.Struct, tag=True):
    """Make an actor, wherever there is room, whenever there is. Answered by `Placed`."""

    number: int
    """The actor's, in what follows."""


class Play(msgspec.Struct, tag=True):
    """Have the actor connect to the engine and play. Answered by `Over`."""

    number: int
    host: str
    port: int
    stands: dict[str, Any]
    """How the engine stands: see `rollout.workers.ray_actor.Stands`."""


class Trace(msgspec.Struct, tag=True):
    """Have the actor say what its threads are doing. Answered by `Traced`, where it can."""

    number: int


class Kill(msgspec.Struct, tag=True):
    """End the actor now, or stop waiting for room for it."""

    number: int


class AskLacking(msgspec.Struct, tag=True):
    """Say what no node has of that which an actor waits for. Answered by `Lacking`, where the head answers."""

    number: int


Command = Connect | Start | Play | Trace | Kill | AskLacking


class Connected(msgspec.Struct, tag=True):
    """The driver is part of the cluster."""

    host: str
    """This node's address, as the cluster has it."""
    cluster: str
    """The cluster's address."""


class NotConnected(msgspec.Struct, tag=True):
    """It cannot be, and ends."""

    why: str


class Placed(msgspec.Struct, tag=True):
    """The actor is there."""

    number: int
    secret: bytes
    """What it is known by when it connects; it made it itself."""
    python: str
    engine: str
    """Version of this package there."""
    host: str
    """Its node's address."""
    pid: int


class Over(msgspec.Struct, tag=True):
    """The actor has ended, or could not be made."""

    number: int
    how: str


class Traced(msgspec.Struct, tag=True):
    """What the actor's threads are doing."""

    number: int
    text: str


class Lost(msgspec.Struct, tag=True):
    """The cluster's head does not answer any more."""

    why: str


class Lacking(msgspec.Struct, tag=True):
    """What no node of the cluster has so much of as an actor asks for, even with nothing else on it."""

    number: int
    names: list[str]


Event = Connected | NotConnected | Placed | Over | Traced | Lost | Lacking

encode = msgspec.msgpack.Encoder().encode
_COMMANDS = msgspec.msgpack.Decoder(Command)
_EVENTS = msgspec.msgpack.Decoder(Event)


def decode_command(frame: bytes | bytearray) -> Command:
    """What the launcher said."""
    command: Command = _COMMANDS.decode(frame)
    return command


def decode_event(frame: bytes | bytearray) -> Event:
    """What the driver said."""
    event: Event = _EVENTS.decode(frame)
    return event

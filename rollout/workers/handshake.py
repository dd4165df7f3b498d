"""How a worker that comes over a network is known, and how it knows its engine, before a frame of either is read.

Both have the worker's secret, which was made for it alone and which nobody sends here. Each shows that it has it, by
what only the secret makes of the other's random bytes:

    engine -> worker    MAGIC, the engine's random bytes
    worker -> engine    the worker's number, its own random bytes, the HMAC of "worker" and both
    engine -> worker    the HMAC of "engine" and both

So whoever listens in learns nothing that serves twice, and whoever only reaches the port has nothing of his read:
neither by the engine, nor, unpickled, by a worker that was led to a wrong engine. What follows is not encrypted: see
docs/ray.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import struct
from collections.abc import Callable

#: What a connection begins with, and the version of what follows.
MAGIC = b"rollout\x01"

#: The length of a secret, and of the random bytes of each side.
LENGTH = 32

_WORKER, _ENGINE = b"worker", b"engine"
_ANSWER = struct.Struct(f"<Q{LENGTH}s{LENGTH}s")


class Refused(Exception):
    """The other side has not the secret, or is something else."""


def new_secret() -> bytes:
    """A secret for one worker."""
    return secrets.token_bytes(LENGTH)


async def greet(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret_of: Callable[[int], bytes | None]
) -> int:
    """The engine's side: which worker this is. `secret_of` gives a number's secret; it is asked once, and may forget.

    Raises Refused; asyncio.IncompleteReadError and OSError where the connection ends.
    """
    ours = secrets.token_bytes(LENGTH)
    writer.write(MAGIC + ours)
    number, theirs, shown = _ANSWER.unpack(await reader.readexactly(_ANSWER.size))
    secret = secret_of(number)
    # Of a number that is not awaited a random secret is asked: it takes as long, and nothing fits it.
    if not hmac.compare_digest(shown, _shown(secret or new_secret(), _WORKER, number, ours, theirs)):
        raise Refused("it has not the secret of a worker that is awaited")
    assert secret is not None
    writer.write(_shown(secret, _ENGINE, number, ours, theirs))
    return int(number)


async def prove(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, secret: bytes) -> None:
    """The worker's side. Raises Refused; asyncio.IncompleteReadError and OSError where the connection ends."""
    greeting = await reader.readexactly(len(MAGIC) + LENGTH)
    if not greeting.startswith(MAGIC):
        raise Refused("what listens there is no engine of this version")
    theirs, ours = greeting[len(MAGIC) :], secrets.token_bytes(LENGTH)
    writer.write(_ANSWER.pack(number, ours, _shown(secret, _WORKER, number, theirs, ours)))
    shown = await reader.readexactly(hashlib.sha256().digest_size)
    if not hmac.compare_digest(shown, _shown(secret, _ENGINE, number, theirs, ours)):
        raise Refused("what listens there has not this worker's secret")


def _shown(secret: bytes, who: bytes, number: int, engines: bytes, workers: bytes) -> bytes:
    return hmac.digest(secret, who + number.to_bytes(8, "little") + engines + workers, "sha256")

"""An answer on its way to one client: waiting with it, streams and their keepalives, and clients that leave.

A stream's status goes out with its answer, or with the first comment that keeps the connection open while the model
thinks. Until then what fails is a status, which programs act on, and a connection that breaks is one that SDKs open
again; later an error is the stream's last event, and a stream that breaks off is the program's own to ask for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from starlette.types import Receive, Send

from rollout.dialects import sse
from rollout.dialects.dialect import Dialect
from rollout.dialects.memory import Memory
from rollout.dialects.types import Call, DialectError, Said
from rollout.proxy.faults import RETRYABLE
from rollout.proxy.turns import Turns, Under

#: Bytes of frames that are sent at once.
_AT_ONCE = 2**16

_JSON = b"application/json"


async def respond(turns: Turns, turn: Under, dialect: Dialect, memory: Memory, receive: Receive, send: Send) -> None:
    """Waits with a client for its turn, and answers it. One that leaves is told to `turns`."""
    turns.wait(turn)
    try:
        left = asyncio.ensure_future(_left(receive))
        over = asyncio.ensure_future(turn.over.wait())
        try:
            begun = False
            patience = turns.keepalive_s if turn.call.stream else None
            while not turn.over.is_set():
                await asyncio.wait((left, over), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                if left.done():
                    return
                if not turn.over.is_set():
                    if not begun:
                        await _begin(send)
                    begun = True
                    await _more(send, sse.KEEPALIVE)
            await _answer(turn, dialect, memory, send, begun=begun)
        finally:
            left.cancel()
            over.cancel()
    finally:
        turns.leave(turn)


async def _answer(turn: Under, dialect: Dialect, memory: Memory, send: Send, *, begun: bool) -> None:
    call: Call = turn.call
    try:
        said: Said = turn.answer()
    except DialectError as error:
        if begun:
            await _more(send, dialect.error_event(error), last=True)
        else:
            await send_error(send, dialect, error)
        return
    if not call.stream:
        await send_body(send, dialect.body(said, call, memory), request_id=said.id)
    else:
        if not begun:
            await _begin(send, said.id)
        await _frames(send, dialect.events(said, call, memory))
    turn.delivered = True


async def _frames(send: Send, frames: Iterator[bytes]) -> None:
    """Sends frames, many at once: a client reads them by their blank lines, however they were cut."""
    held, size = list[bytes](), 0
    for frame in frames:
        held.append(frame)
        size += len(frame)
        if size > _AT_ONCE:
            await _more(send, b"".join(held))
            held, size = [], 0
    await _more(send, b"".join(held), last=True)


async def send_body(
    send: Send, body: bytes, status: int = 200, request_id: str = "", retry: bool | None = None
) -> None:
    """A whole answer."""
    headers = [(b"content-type", _JSON), (b"content-length", str(len(body)).encode())]
    if request_id:
        headers += _names(request_id)
    if retry is not None:
        headers.append((b"x-should-retry", b"true" if retry else b"false"))
        if retry:
            headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, dialect: Dialect, error: DialectError) -> None:
    """An error in the dialect's own form, with what SDKs need to know: whether another try may help."""
    await send_body(send, dialect.error(error), error.status, retry=error.status in RETRYABLE)


async def _begin(send: Send, request_id: str = "") -> None:
    headers = [
        (b"content-type", f"{sse.MEDIA_TYPE}; charset=utf-8".encode()),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # what stands between must not hold it back
        *(_names(request_id) if request_id else ()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


def _names(request_id: str) -> list[tuple[bytes, bytes]]:
    """OpenAI's clients read one name, Anthropic's the other."""
    named = f"req_{request_id}".encode()
    return [(b"x-request-id", named), (b"request-id", named)]


async def _more(send: Send, body: bytes, *, last: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": not last})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

"""A rollout's turns over HTTP: each is played once, however often its client asks for it and whether it waits or not.

A client that marks a request as sent before (an idempotency key that is known, or a retry count from 1 on where it has
no key) is given the turn that it asked for, under way or done. An equal request that is not marked is a new turn:
best-of-n asks the same n times, and after a compaction the same may be meant anew. Where nobody waits for the
earlier one by then, its client has given it up: unless somebody comes for it, it is kept and not trained on.

    request ----> begun ----> committed, journalled ----> answered
                    |  its client leaves, and nobody comes back for `client_gone_s`: cancelled, on the server too
    marked again ---+---------------------+-----------> the same turn, the same answer
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import anyio
import msgspec

from rollout.chat.messages import Message
from rollout.config import EngineConfig
from rollout.dialects.headers import Caller
from rollout.dialects.stops import stopped
from rollout.dialects.types import Call, DialectError, Said
from rollout.play.model import Asking
from rollout.play.session import Ask, SessionClosed
from rollout.proxy import faults
from rollout.records import Turn

#: Turns that are over and that a retry may ask for: the last ones. One that is under way is never forgotten.
_KEPT = 512

Start = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
"""Starts a task."""


class Turned(msgspec.Struct, frozen=True, kw_only=True):
    """A turn that was committed, and whose answer is on its way."""

    call: Call
    dialect: str
    """That it came in."""
    ask: Ask
    said: Said
    turn: Turn
    index: int
    """Of the rollout's turns."""
    request_digest: bytes
    """Of the request: a marked retry has the same."""
    idempotency_key: str | None = None


BeforeLastEvent = Callable[[Turned], Awaitable[None]]
"""What is done between the commit of a turn and the first byte of its answer, such as writing a journal. Where it
raises, the client is answered an error in place of the answer."""


class Under:
    """One turn, from when it is asked for, and how many requests wait for it."""

    def __init__(self, call: Call, digest: bytes, idempotency_key: str | None = None, dialect: str = "") -> None:
        self.call = call
        self.dialect = dialect
        self.digest = digest
        self.idempotency_key = idempotency_key
        self.over = asyncio.Event()
        self.said: Said | None = None
        self.error: DialectError | None = None
        """Why there is no answer, once it is over."""
        self.delivered = False
        """Whether a client has had the whole answer."""
        self.waiting = 0
        self.asked_anew = False
        """Whether an equal request came while nobody waited: its client has given it up, and asked without a mark."""
        self.scope = anyio.CancelScope()
        self.gone: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "under way" if not self.over.is_set() else "failed" if self.said is None else "done"
        return f"<Under {state}, {self.waiting} wait>"

    @property
    def names(self) -> list[object]:
        """What a request that asks for it again may say: without its key it is known by its digest all the same."""
        keyed = [] if self.idempotency_key is None else [(self.idempotency_key, self.digest)]
        return [self.digest, *keyed]

    def answer(self) -> Said:
        """What the model said. Raises DialectError."""
        if self.said is None:
            raise self.error or faults.ended()
        return self.said


class Turns:
    """One rollout's."""

    def __init__(
        self, asking: Asking, start: Start, config: EngineConfig, before_last_event: BeforeLastEvent | None = None
    ) -> None:
        self._asking = asking
        self._start = start
        self._client_gone_s, self._most, self.keepalive_s = (
            config.client_gone_s,
            config.proxy_turns,
            config.proxy_keepalive_s,
        )
        self._before_last_event = before_last_event
        self._known = dict[object, dict[Under, None]]()
        """By their names, those of each in order: what is under way, and what is in `_kept`."""
        self._kept = deque[Under]()
        """Those that are over and have an answer, the oldest first."""
        self._under_way = set[Under]()
        self._closed: Callable[[], DialectError] | None = None
        """Makes the reason why nothing is asked any more: one that is raised often would keep the frames of each."""

    def __repr__(self) -> str:
        return f"<Turns {len(self._under_way)} under way>"

    def asked_before(self, caller: Caller, digest: bytes) -> Under | None:
        """The turn that a request asks for again, where its client says that it does."""
        if caller.idempotency_key is None and not caller.is_retry:
            return None
        # Under a key that was not seen it was never asked for: what is equal has a key of its own, or none.
        name = digest if caller.idempotency_key is None else (caller.idempotency_key, digest)
        found = self._known.get(name, {})
        # Equal requests, each sent again: each has a turn that nobody else waits for, if there is one.
        return min(reversed(found), key=lambda turn: (turn.delivered, turn.waiting), default=None)

    def begin(self, call: Call, ask: Ask, caller: Caller, digest: bytes, *, dialect: str = "") -> Under:
        """Has the model answer. Raises DialectError once the rollout has ended, and where there is no room."""
        if self._closed is not None:
            raise self._closed()
        if len(self._under_way) >= self._most:
            raise faults.no_room(f"{self._most} turns of this rollout are under way (proxy_turns)")
        for equal in self._known.get(digest, {}):
            equal.asked_anew = equal.asked_anew or not equal.waiting
        turn = Under(call, digest, caller.idempotency_key, dialect)
        self._under_way.add(turn)
        self._know(turn)
        self._start(lambda: self._play(turn, ask))
        return turn

    @property
    def under_way(self) -> int:
        """How many the model is at."""
        return len(self._under_way)

    async def settled(self) -> None:
        """Waits until those under way are over."""
        for turn in list(self._under_way):
            await turn.over.wait()

    def restore(self, call: Call, said: Said, digest: bytes, idempotency_key: str | None) -> None:
        """A turn that was answered before this process began, to be known when its client asks for it again."""
        turn = Under(call, digest, idempotency_key)
        turn.said = said
        turn.over.set()
        self._know(turn)
        self._keep(turn)

    def wait(self, turn: Under) -> None:
        """A request waits for a turn."""
        turn.waiting += 1
        if turn.gone is not None:
            turn.gone.cancel()
            turn.gone = None

    def leave(self, turn: Under) -> None:
        """It does not any more: it was answered, or its client has left."""
        turn.waiting -= 1
        if not turn.waiting and not turn.over.is_set():
            loop = asyncio.get_running_loop()
            turn.gone = loop.call_later(self._client_gone_s, turn.scope.cancel)

    def close(self, why: Callable[[], DialectError] = faults.ended) -> None:
        """What is under way is cancelled, on the server too; whoever asks is told `why`."""
        self._closed = why
        for turn in self._under_way:
            turn.scope.cancel()

    async def _play(self, turn: Under, ask: Ask) -> None:
        try:
            with turn.scope:
                turn.said = await self._said(turn, ask)
            if turn.said is None:
                turn.error = self._refusal(_left(self._client_gone_s))
        except SessionClosed as error:
            turn.error = self._refusal(error)
        except Exception as error:
            turn.error = faults.refusal_of(error)
        finally:
            self._under_way.discard(turn)
            if turn.gone is not None:
                turn.gone.cancel()
            if turn.said is None:
                self._forget(turn)  # asked for again, it is tried anew
            else:
                self._keep(turn)
            turn.over.set()

    def _refusal(self, error: Exception) -> DialectError:
        return self._closed() if self._closed is not None else faults.refusal_of(error)

    async def _said(self, turn: Under, ask: Ask) -> Said:
        message, index = await self._asking.turn(ask)
        played = self._asking.session.turns[index]
        if turn.asked_anew and not turn.waiting:
            played.train = False  # nobody has received it, and what its client asked for anew is what went on
        said = said_of(message, played, uuid.uuid4().hex[:24], int(time.time()), turn.call.sampling)
        if self._before_last_event is not None:
            turned = Turned(
                call=turn.call,
                dialect=turn.dialect,
                ask=ask,
                said=said,
                turn=played,
                index=index,
                request_digest=turn.digest,
                idempotency_key=turn.idempotency_key,
            )
            # Shielded: it is committed, so it is kept whole, whoever leaves meanwhile.
            with anyio.CancelScope(shield=True):
                await self._before_last_event(turned)
        return said

    def _keep(self, turn: Under) -> None:
        """Its answer may be asked for again, until so many others came."""
        self._kept.append(turn)
        if len(self._kept) > _KEPT:
            self._forget(self._kept.popleft())

    def _know(self, turn: Under) -> None:
        for name in turn.names:
            self._known.setdefault(name, {})[turn] = None

    def _forget(self, turn: Under) -> None:
        for name in turn.names:
            equal = self._known[name]
            del equal[turn]
            if not equal:
                del self._known[name]


def said_of(message: Message, turn: Turn, identifier: str, created: int, asked: Mapping[str, Any]) -> Said:
    """What the model answered in a turn, as dialects write it. `asked` is the sampling that its client asked for."""
    stop, shown = stopped(message, asked) if asked and turn.finish_reason == "stop" else (None, None)
    return Said(
        message=message,
        shown=shown,
        stop_sequence=stop,
        finish_reason="length" if turn.finish_reason == "length" else "stop",
        prompt_tokens=turn.prompt_tokens,
        completion_tokens=turn.completion_tokens,
        cached_tokens=turn.cached_tokens,
        id=identifier,
        created=created,
    )


def _left(after_s: float) -> faults.ClientGone:
    return faults.ClientGone(f"cancelled: its client left, and did not come back within {after_s:g} s (client_gone_s)")

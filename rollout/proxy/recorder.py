"""The recorder: whatever agent is pointed at it, each key's turns are a rollout, and no turn that was answered is lost.

    a key ----> a session ----> turns, each in the journal before its answer is sent (`journal`)
                   |  POST /sessions/ID/end, or nobody asks for `idle_s`
                   +----> a line of rollouts.jsonl, as of any run: `rollout show`, `rollout export`

A key that nobody registered opens a session of its own where only this machine reaches the recorder. It stands for one
rollout: once that has ended the key is refused. Of one key, requests that name a session by a header, as Claude Code's
and Codex's do, are a rollout for each session; a registered key beats any header.

When it stops, the sessions that have not ended get their lines, too, and go on all the same where a recorder is started
in the same folder: of a session that has several lines the last one counts.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from rollout.config import EngineConfig
from rollout.dialects.headers import Caller
from rollout.dialects.types import DialectError
from rollout.errors import UsageError
from rollout.log import get_logger
from rollout.play.served import ServedModel
from rollout.proxy import faults
from rollout.proxy.journal import Journal
from rollout.proxy.journal_lines import Closed, EndLine, Opened, RewardLine
from rollout.proxy.record_folder import Found, RecordFolder
from rollout.proxy.recorded import Recorded
from rollout.proxy.sessions import Served, key_digest
from rollout.records import Rollout, Turn

_log = get_logger(__name__)

#: Seconds between two looks for sessions that nobody uses.
_LOOK_S = 15.0


class RecorderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a recorder is told beside an engine's configuration."""

    open_unknown: bool = True
    """Whether a key that nobody registered opens a session of its own."""
    fsync: bool = False
    """Whether each turn is on the disk before it is answered; else it outlives this process, not a power failure."""
    idle_s: float = 3600.0
    """A session that nobody asks for so long has ended."""
    most_sessions: int = 10_000
    """Sessions that have not ended, at most."""


class Given(msgspec.Struct, kw_only=True):
    """What a session was worth."""

    reward: float | None = None
    metrics: dict[str, float] = {}
    rewards: dict[str, float] = {}
    """By the name of the agent that asked."""


class Recorder:
    """The sessions, by their keys and by their ids."""

    def __init__(
        self,
        model: ServedModel,
        config: EngineConfig,
        settings: RecorderSettings,
        folder: RecordFolder,
        journal: Journal,
        tasks: anyio.abc.TaskGroup,
        *,
        on_failed: Callable[[UsageError], None] = lambda error: None,
        on_turn: Callable[[Turn], None] = lambda turn: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Made by `recording`."""
        self._on_failed = on_failed
        self.settings = settings
        self.folder = folder
        self.stopping = False
        """No turn is begun any more: clients are told to ask again."""
        self._model, self._config, self._journal, self._tasks = model, config, journal, tasks
        self._on_turn, self._clock = on_turn, clock
        self._live: dict[str, Recorded] = {}
        self._by_key: dict[str, str] = {}
        """Key's hash -> session id, of sessions that have not ended."""
        self._visitor = self._recorded(Opened(session="visitor", key=""))

    def __repr__(self) -> str:
        return f"<Recorder {len(self._live)} sessions, {len(self.folder.ended)} ended>"

    def __len__(self) -> int:
        return len(self._live)

    @property
    def under_way(self) -> int:
        """Turns that the model is at."""
        return sum(recorded.served.turns.under_way for recorded in self._live.values())

    @property
    def visitor(self) -> Served:
        """The model, as whoever has no key may see it: its name, and nothing of any session."""
        return self._visitor.served

    def find(self, keys: Sequence[str], caller: Caller) -> Served:
        """See `rollout.proxy.sessions.Sessions`."""
        if self.stopping:
            raise faults.stopping()
        # Of a key that is registered for none, each session that the client names is a rollout. A path is one itself.
        named = keys is caller.keys and caller.session is not None
        if (known := self._known(keys, registered=named)) is not None:
            return known
        if not self.settings.open_unknown:
            raise faults.unknown_key()
        if not keys:
            why = "a request names its rollout by its API key, any text, or by its path /r/KEY"
            raise DialectError(401, why, code="invalid_api_key")
        name = keys[0]
        if named:
            name = f"{name}\n{caller.session}"
            if (known := self._known((name,))) is not None:
                return known
        recorded = self._open(Opened(session=uuid.uuid4().hex[:16], key=hash_of(name), at=time.time()))
        self._journal.tell(recorded.opened)
        return recorded.served

    def _known(self, keys: Sequence[str], *, registered: bool = False) -> Served | None:
        """The session of the first key that has one, and of `registered` keys alone where those are asked for: no other
        one's session is the caller's, live or ended.

        Raises DialectError where the keys are known as ones of sessions that have ended.
        """
        hashes = [hash_of(key) for key in keys]
        for each in hashes:
            if (recorded := self._live.get(self._by_key.get(each, ""))) is not None:
                if registered and not recorded.opened.registered:
                    continue
                if recorded.ending:
                    raise faults.ended()
                recorded.use()
                return recorded.served
        for each in hashes:
            ended = self.folder.ended_keys.get(each)
            if ended is not None and (ended.registered or not registered):
                raise faults.ended(ended.why)
        return None

    async def open(self, name: str, task: Mapping[str, Any], key: str) -> Recorded:
        """Registers a key. Raises DialectError, 409 where it has a rollout already."""
        digest = hash_of(key)
        if digest in self._by_key or digest in self.folder.ended_keys:
            raise DialectError(409, "this key has a rollout already: a key stands for one", code="key_in_use")
        made = Opened(session=uuid.uuid4().hex[:16], key=digest, registered=True, name=name, task=task, at=time.time())
        recorded = self._open(made)
        await self._journal.write(recorded.opened)
        return recorded

    def _open(self, opened: Opened) -> Recorded:
        if len(self._live) >= self.settings.most_sessions:
            raise faults.no_room(f"{len(self._live)} sessions have not ended (max_sessions)")
        self.folder.place(opened)
        recorded = self._live[opened.session] = self._recorded(opened)
        self._by_key[opened.key] = opened.session
        _log.info("session_opened", session=opened.session, name=opened.name, registered=opened.registered)
        return recorded

    def _recorded(self, opened: Opened, found: Found | None = None) -> Recorded:
        return Recorded(
            opened,
            self._model,
            self._config,
            self._journal,
            self._start,
            restored=found.restored if found is not None else None,
            on_turn=self._on_turn,
            clock=self._clock,
        )

    def _start(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._tasks.start_soon(function)

    def get(self, session: str) -> Recorded:
        """A session that has not ended. Raises DialectError: 404, and 409 where it has."""
        recorded = self._live.get(session)
        if recorded is not None and not recorded.ending:
            recorded.use()
            return recorded
        if recorded is not None or session in self.folder.ended:
            raise DialectError(409, f"session {session!r} has ended", code="ended")
        raise DialectError(404, f"there is no session {session[:100]!r}", code="session_not_found")

    def states(self) -> list[dict[str, Any]]:
        """The sessions that have not ended, the oldest first."""
        return [recorded.state() for recorded in self._live.values()]

    async def reward(self, session: str, given: Given) -> Recorded:
        """Takes a reward; what is given later wins. Raises DialectError."""
        recorded = self.get(session)
        before = recorded.reward
        recorded.reward = RewardLine(
            session=session,
            reward=before.reward if given.reward is None else given.reward,
            metrics={**before.metrics, **given.metrics},
            rewards={**before.rewards, **given.rewards},
        )
        await self._journal.write(recorded.reward)
        return recorded

    async def end(self, session: str, given: Given | None = None, why: str = "") -> Rollout:
        """Ends a session: what is under way is cancelled, its line is written, its key refused. Raises DialectError."""
        if given is not None:
            await self.reward(session, given)
        return await self._end(self.get(session), why)

    async def _end(self, recorded: Recorded, why: str) -> Rollout:
        opened, recorded.ending = recorded.opened, True
        recorded.close()
        rollout = recorded.rollout(why)
        # Shielded: whoever asked for it may leave meanwhile.
        with anyio.CancelScope(shield=True):
            await self._journal.write(EndLine(session=opened.session, why=why))
            # A key that was seen and never asked for a turn is no rollout.
            kept = rollout if rollout.turns or opened.registered else None
            with self._failing():
                await self.folder.end(opened, kept, why, self.settings.fsync)
            await self._journal.write(Closed(session=opened.session, why=why))
        self._journal.forget(opened.session)
        self._live.pop(opened.session, None)
        self._by_key.pop(opened.key, None)
        _log.info("session_ended", session=opened.session, turns=len(rollout.turns), reward=rollout.reward, why=why)
        return rollout

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """A folder that takes no more ends the recorder. The journal has what it has. Raises UsageError."""
        try:
            yield
        except (OSError, UsageError) as error:
            said = getattr(error, "strerror", None) or error
            failed = UsageError(f"cannot write the run folder {str(self.folder.path)!r}: {said}; the journal is kept")
            self._on_failed(failed)
            raise failed from error

    async def rollout(self, session: str) -> Rollout:
        """A session's record, ended or not. Raises DialectError."""
        if session in self.folder.ended:
            found = await anyio.to_thread.run_sync(self.folder.read, session)
            if found is None:
                raise DialectError(404, f"session {session!r} has ended without a turn", code="session_not_found")
            return found
        return self.get(session).rollout()

    async def watch(self) -> None:
        """Ends sessions that nobody uses. Never returns."""
        while True:
            await anyio.sleep(min(_LOOK_S, self.settings.idle_s / 4))
            with suppress(UsageError):  # it has been told, and ends the recorder
                with self._failing():
                    await anyio.to_thread.run_sync(self.folder.check)
                await self.end_idle()

    async def end_idle(self) -> None:
        """Ends the sessions that nobody has used for so long as is allowed."""
        for session, recorded in list(self._live.items()):
            if not recorded.ending and recorded.idle_s > self.settings.idle_s:
                await self.end(session, why=f"nobody asked it for {self.settings.idle_s:g} s")

    async def restore(self) -> None:
        """Goes on with the sessions that an earlier process has left."""
        for found in self.folder.left:
            recorded = self._recorded(found.opened, found)
            self._live[found.opened.session] = recorded
            self._by_key[found.opened.key] = found.opened.session
            if found.restored.end is not None:
                recorded.ending = True
                await self._end(recorded, found.restored.end.why)
        self.folder.left.clear()

    async def stop(self, grace_s: float) -> None:
        """Lets the turns under way end, within the grace, and writes a line for each session that has not ended."""
        self.stopping = True
        with anyio.move_on_after(grace_s):
            for recorded in list(self._live.values()):
                await recorded.served.turns.settled()
        for recorded in list(self._live.values()):
            recorded.close(faults.stopping)
        for recorded in list(self._live.values()):
            if recorded.session.turns and not recorded.ending:
                with self._failing():
                    await self.folder.write(recorded.opened, recorded.rollout("the recorder was stopped"))


def hash_of(key: str) -> str:
    """All that is kept of a key."""
    return key_digest(key).hex()


@asynccontextmanager
async def recording(
    model: ServedModel,
    config: EngineConfig,
    settings: RecorderSettings,
    folder: RecordFolder,
    *,
    on_failed: Callable[[UsageError], None] = lambda error: None,
    on_turn: Callable[[Turn], None] = lambda turn: None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Recorder]:
    """A recorder that goes on with what its folder has. `on_failed` is told when the disk takes no more, `on_turn` of
    each turn."""
    try:
        journal = Journal(folder.path, fsync=settings.fsync, on_failed=on_failed, places=folder.places)
    except OSError as error:
        raise UsageError(f"cannot write the journal in {str(folder.path)!r}: {error.strerror or error}") from error
    try:
        async with anyio.create_task_group() as tasks:
            recorder = Recorder(
                model, config, settings, folder, journal, tasks, on_failed=on_failed, on_turn=on_turn, clock=clock
            )
            await recorder.restore()
            tasks.start_soon(recorder.watch)
            yield recorder
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(journal.close)

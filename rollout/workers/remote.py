"""A rollout that a process plays, where an engine expects an `Episode`."""

from __future__ import annotations

from typing import Protocol

import anyio

from rollout.records import Failure, FailureKind, Job, Rollout
from rollout.workers import wire
from rollout.workers.channel import MOST_FRAME, FrameTooLong
from rollout.workers.handle import GRACE_S, Awaited, Handle


class Handles(Protocol):
    """What a remote rollout needs of its pool."""

    def next_number(self) -> int:
        """A number that no other rollout has."""
        ...

    async def handle_for(self, session: str, job: Job) -> Handle:
        """The process for a rollout: its group's, or the least busy."""
        ...

    def release(self, session: str) -> None:
        """The rollout has ended, however it did."""
        ...


class RemoteEnv:
    """Rollouts of one environment, played by processes. Stands in `rollout.play.player.PlayedEnv`'s place."""

    def __init__(self, pool: Handles, make_env: bytes | None) -> None:
        self._pool = pool
        self._make_env = make_env

    def __repr__(self) -> str:
        return f"<RemoteEnv of {len(self._make_env)} bytes>" if self._make_env is not None else "<RemoteEnv>"

    def episode(self, job: Job, *, evaluation: bool) -> RemoteEpisode:
        """One rollout, ready to be played by one of the processes."""
        return RemoteEpisode(self._pool, job, evaluation, self._make_env)


class RemoteEpisode:
    """A rollout that is played by a process. Stands in `rollout.play.episode.Episode`'s place."""

    def __init__(self, pool: Handles, job: Job, evaluation: bool, make_env: bytes | None = None) -> None:
        """`make_env` is pickled; None is the engine's own environment, which every process has."""
        self._pool = pool
        self._make_env = make_env
        self._job = job
        self._evaluation = evaluation
        self.rollout = job.rollout()

    def __repr__(self) -> str:
        return f"<RemoteEpisode {self.rollout.id}>"

    async def play(self) -> Rollout:
        """Plays to the end. Raises only when it is cancelled from outside; `rollout` then holds what was played."""
        number = self._pool.next_number()
        session = str(number)
        try:
            frame = wire.encode(wire.Play(number, self._job, self._evaluation, self._make_env))
            if len(frame) > MOST_FRAME:
                raise FrameTooLong(len(frame))
        except Exception as error:  # what a task's own objects raise when they are written, too
            message = f"its task cannot be sent to a process: {error}"
            self._fail(FailureKind.ENVIRONMENT, message, type(error).__name__)
            return self.rollout
        try:
            await self._play(number, await self._pool.handle_for(session, self._job), frame)
        except BaseException:
            if self.rollout.failure is None and self.rollout.stop is None:
                self._fail(FailureKind.CANCELLED, "cancelled")
            raise
        finally:
            self._pool.release(session)
        return self.rollout

    async def _play(self, number: int, handle: Handle, frame: bytes) -> None:
        awaited = handle.playing[number] = Awaited()
        sent = False
        try:
            await handle.sent()
            if awaited.lost is None:  # else it is another process by now
                handle.send_frame(frame)
                sent = True
            await awaited.over.wait()
        except BaseException:
            if sent:
                handle.send(wire.Cancel(number))
                with anyio.move_on_after(GRACE_S, shield=True):
                    await awaited.over.wait()
            raise
        finally:
            del handle.playing[number]
            if awaited.ended is not None:
                earlier, self.rollout = self.rollout, wire.restored(awaited.ended, self._job.task)
                self.rollout.earlier_failures = earlier.earlier_failures
            elif awaited.lost is not None:
                self._fail(FailureKind.PROCESS, awaited.lost)

    def _fail(self, kind: FailureKind, message: str, error: str = "") -> None:
        self.rollout.failure = Failure(kind=kind, message=message, error=error)

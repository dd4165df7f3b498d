"""One session of the recorder: a rollout that nobody here plays, whose turns come over HTTP as its agent likes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from rollout.config import EngineConfig
from rollout.dialects.types import DialectError
from rollout.door import error_text
from rollout.play.model import Asking
from rollout.play.served import ServedModel
from rollout.play.session import Session
from rollout.proxy import faults
from rollout.proxy.journal import Journal, JournalFailed, NotJournalled
from rollout.proxy.journal_lines import Opened, RewardLine, Tape
from rollout.proxy.restore import Restored
from rollout.proxy.sessions import Served
from rollout.proxy.turns import Start, Turned
from rollout.records import Failure, FailureKind, Rollout, StopReason, Timing, Turn, settle_reward


class Recorded:
    """One session, from its first request until its line is in rollouts.jsonl."""

    def __init__(
        self,
        opened: Opened,
        model: ServedModel,
        config: EngineConfig,
        journal: Journal,
        start: Start,
        *,
        restored: Restored | None = None,
        on_turn: Callable[[Turn], None] = lambda turn: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.opened = opened
        self.reward = restored.reward if restored is not None else RewardLine(session=opened.session)
        self.ending = False
        """Nothing is asked any more; its line is being written."""
        self._clock = clock
        self.used_at = clock()
        """When it was last asked or told anything."""
        self._journal = journal
        # Another id on the wire in each process: the server may still be at a turn of the one before.
        identifier = f"{opened.session}-{uuid.uuid4().hex[:8]}"
        if restored is None:
            self.session = Session(model, identifier, group_id=opened.task_id)
            self._tape = Tape(opened.session)
        else:
            tree, turns = restored.trajectory(), restored.turns
            self.session = Session(model, identifier, group_id=opened.task_id, trajectory=tree, turns=turns)
            self._tape = Tape(opened.session, restored.messages, self.session)
        self.session.has_several()
        self.asking = Asking(self.session, config, on_turn=on_turn)
        self.served = Served(self.asking, config, start=start, before_last_event=self._keep)
        if restored is not None:
            restored.remember(self.served.memory, self.served.turns)
        self._unwritten: NotJournalled | None = None

    def __repr__(self) -> str:
        return f"<Recorded {self.opened.session} {len(self.session.turns)} turns>"

    def use(self) -> None:
        """It is asked or told something."""
        self.used_at = self._clock()

    @property
    def idle_s(self) -> float:
        """For how long it was not asked anything; 0 while the model is at a turn."""
        return 0.0 if self.served.turns.under_way else self._clock() - self.used_at

    async def _keep(self, turned: Turned) -> None:
        """Writes a turn down, before its answer is sent. Raises NotJournalled, DialectError."""
        self.use()
        if self._unwritten is not None:
            raise self._unwritten  # what comes after it goes on from what is not there
        try:
            await self._journal.write(self._tape.line(self.session, turned))
        except NotJournalled as error:
            self._unwritten = error
            raise
        except JournalFailed as error:
            raise DialectError(503, str(error), code="not_journalled") from error

    def close(self, why: Callable[[], DialectError] = faults.ended) -> None:
        """Nothing is asked any more, and what is under way is cancelled; whoever asks is told `why`."""
        self.served.turns.close(why)
        self.asking.close()

    def rollout(self, why: str = "") -> Rollout:
        """Its record, as it stands: what turns add later is not in it, so that another thread may read it."""
        opened, session, tree = self.opened, self.session, self.session.trajectory
        rollout = Rollout(
            id=opened.session,
            task_id=opened.task_id,
            task_index=opened.task_index,
            member=opened.member,
            task=opened.task,
            score=self.reward.reward,
            rewards=self.reward.rewards,
            metrics=self.reward.metrics,
            notes={"ended": why} if why else {},
            stop=self.asking.limit or StopReason.DONE,
            turns=list(session.turns),
            messages=session.conversation,
            roots=list(tree.roots),
            nodes=[msgspec.structs.replace(node) for node in tree.nodes],  # a fork cuts those that there are
            leaves=list(tree.leaves),
            timing=Timing(
                started_at=opened.at,
                wall_s=max(0.0, time.time() - opened.at),
                request_s=sum((turn.request_s for turn in session.turns), 0.0),
            ),
        )
        settle_reward(rollout)
        fault = next(iter(self.asking.faults.values()), None)
        if fault is not None and self.reward.reward is None:
            # What the infrastructure broke is no reward of 0; whoever gave one has judged it all the same.
            rollout.stop = None
            message, error = error_text(fault), type(fault).__name__
            rollout.failure = Failure(kind=FailureKind.TRANSPORT, message=message, error=error)
        return rollout

    def state(self) -> dict[str, Any]:
        """What `GET /sessions/ID` tells."""
        opened, turns = self.opened, self.session.turns
        return {
            "id": opened.session,
            "name": opened.name,
            "task": opened.task,
            "turns": len(turns),
            "under_way": self.served.turns.under_way,
            "sampled_tokens": sum(turn.completion_tokens for turn in turns),
            "fallbacks": _counted([turn.fallback.value for turn in turns if turn.fallback is not None]),
            "reward": self.reward.reward,
            "ended": False,
        }


def _counted(names: list[str]) -> dict[str, int]:
    return {name: names.count(name) for name in dict.fromkeys(names)}

"""An agent's rollout: it is handed the model, and asks when it likes."""

from __future__ import annotations

from rollout.agent import Agent
from rollout.chat.messages import Message
from rollout.errors import TransportError
from rollout.log import get_logger
from rollout.play.answers import method_of, read_notes, read_outcome
from rollout.play.driven import Call
from rollout.play.faults import EnvironmentFault
from rollout.play.model import Asking, RolloutModel
from rollout.play.route import FallbackRefused
from rollout.records import Rollout, StopReason, settle_reward
from rollout.tokens.verify import InvariantBroken

_log = get_logger(__name__)


class Driving:
    """`run`, and what it says of how it went."""

    def __init__(self, agent: Agent, rollout: Rollout, asking: Asking, call: Call) -> None:
        self._agent, self._rollout, self._asking, self._call = agent, rollout, asking, call
        asking.session.has_several()

    def __repr__(self) -> str:
        return f"<Driving {type(self._agent).__name__}, {self._asking!r}>"

    @property
    def messages(self) -> list[Message]:
        """See `Session.conversation`."""
        return self._asking.session.conversation

    async def play(self) -> StopReason:
        """Plays to the end."""
        rollout, asking = self._rollout, self._asking
        rollout.step_reward = None  # there are no steps
        try:
            outcome = await self._call("run", method_of(self._agent, "run"), rollout.task, RolloutModel(asking))
            read = read_outcome(outcome)
        except EnvironmentFault as fault:
            return self._cut_short(fault)
        finally:
            self._keep_notes()
        if asking.faults:
            raise next(iter(asking.faults.values()))
        rollout.score, rollout.rewards = read.reward, dict(read.rewards)
        rollout.metrics.update(read.metrics)
        settle_reward(rollout)
        return asking.limit or StopReason.DONE

    def _keep_notes(self) -> None:
        """Whatever becomes of it. Notes that cannot be read cost themselves only."""
        try:
            self._rollout.notes = read_notes(self._agent)
        except EnvironmentFault as fault:
            _log.warning("notes_not_kept", rollout=self._rollout.id, error=str(fault))

    def _cut_short(self, fault: EnvironmentFault) -> StopReason:
        """What a `run` that failed comes to: the rollout's limit, the infrastructure's failure, or its own."""
        raised = fault.raised
        if self._asking.ended is not None:
            raise self._asking.ended
        if isinstance(raised, TransportError | FallbackRefused | InvariantBroken):
            raise raised
        if self._asking.faults:
            raise next(iter(self._asking.faults.values())) from raised
        limit = self._asking.limit
        # A client of its own tells the limit by an exception of its own.
        if limit is not None and raised is not None:
            return limit
        raise fault

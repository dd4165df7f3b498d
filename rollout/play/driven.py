"""An environment's rollout: the engine asks the model, the environment says what comes next."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

from rollout.chat.messages import Message, with_tool_names
from rollout.config import EngineConfig
from rollout.env import Env
from rollout.errors import LimitReached
from rollout.play.answers import (
    Answer,
    method_of,
    own_method,
    read_blocks,
    read_max_tokens,
    read_messages,
    read_score,
    read_step,
    read_tools,
    tell_finish_reason,
)
from rollout.play.faults import EnvironmentFault
from rollout.play.host import Host
from rollout.play.model import Asking
from rollout.play.session import Ask
from rollout.records import Rollout, StopReason, settle_reward


class Driven:
    """`reset`, then `step` on each of the model's messages, then `score`."""

    def __init__(
        self, env: Env, rollout: Rollout, asking: Asking, config: EngineConfig, host: Host, call: Call
    ) -> None:
        self.messages: list[Message] = []
        """The conversation so far."""
        self._env, self._rollout, self._asking, self._config = env, rollout, asking, config
        self._host, self._call = host, call
        self._tools: list[Any] = []

    def __repr__(self) -> str:
        return f"<Driven {type(self._env).__name__}, {len(self.messages)} messages>"

    async def play(self) -> StopReason:
        """Plays to the end."""
        env = self._env
        self._host.blocks = read_blocks(env)
        self._append(read_messages(await self._call("reset", method_of(env, "reset"), self._rollout.task), "reset"))
        if not self.messages:
            raise EnvironmentFault("reset gave no message")
        stop = await self._turns()
        if (score := own_method(env, "score")) is not None:
            limit_s = self._config.score_timeout_s or self._config.step_timeout_s
            reward = read_score(await self._call("score", score, list(self.messages), limit_s=limit_s))
            if reward is not None:
                self._rollout.score = reward
                settle_reward(self._rollout)
        return stop

    async def _turns(self) -> StopReason:
        env, asking = self._env, self._asking
        while True:
            self._tools = read_tools(env, self._tools)
            try:
                ask = Ask(messages=self.messages, tools=self._tools, max_tokens=read_max_tokens(env))
                answer, index = await asking.turn(ask)
            except LimitReached:
                assert asking.limit is not None
                return asking.limit
            self.messages.append(answer)
            tell_finish_reason(env, asking.session.turns[index].finish_reason)
            if self._take(read_step(await self._call("step", method_of(env, "step"), answer)), index):
                return StopReason.DONE

    def _take(self, step: Answer, index: int) -> bool:
        """Takes over what the environment answered; returns whether it is done."""
        turn, rollout = self._asking.session.turns[index], self._rollout
        turn.reward, turn.metrics = step.reward, step.metrics
        total = (rollout.step_reward or 0.0) + step.reward
        if not math.isfinite(total):
            raise EnvironmentFault(f"the rewards of its steps add up to {total}, which is no finite number")
        rollout.step_reward = total
        rollout.metrics.update(step.metrics)
        settle_reward(rollout)
        if step.conversation is not None:
            self.messages = []
            self._append(step.conversation)
        self._append(step.messages)
        if not step.done and not (self.messages and self.messages[-1].role != "assistant"):
            raise EnvironmentFault("step is not done but gives the model nothing to answer")
        return step.done

    def _append(self, new: list[Message]) -> None:
        # Names for tool messages come from the calls, which may lie one turn back.
        last = self.messages[-1:]
        self.messages.extend(with_tool_names([*last, *new])[len(last) :])


#: Calls user code: its name, the function, its arguments; `limit_s` is its own limit.
Call = Callable[..., Awaitable[Any]]

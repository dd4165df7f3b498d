"""The model as one rollout asks it: what it may ask still, what it has asked, and what went wrong with it.

`Asking` is the rollout's, `RolloutModel` what an agent holds of it: one for each name that an agent gives. Both an
agent's `chat` and the turns of an environment go through `Asking.turn`, so that limits, staleness and the end of a run
hold for either.

A server that fails is a failure of the rollout, never a reward of 0, whatever an agent makes of the exception: what
failed is remembered until the same agent has asked again, thereafter, with success.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rollout.agent import Answer, Endpoint, Usage
from rollout.chat.messages import Message
from rollout.checks import check_sampling
from rollout.config import EngineConfig
from rollout.door import Refused, plain, positive
from rollout.errors import (
    AuthenticationFailed,
    ConfigError,
    LimitReached,
    MessageError,
    ModelNotFound,
    PromptTooLong,
    RequestRefused,
    RolloutError,
    TransportError,
)
from rollout.play.form import settle_form
from rollout.play.route import FallbackRefused
from rollout.play.served import ContextFull
from rollout.play.session import Ask, Session
from rollout.records import StopReason, Turn
from rollout.tokens.verify import InvariantBroken

#: What a request has that is no sampling parameter of a turn's: it is ours to say, or would have more than one answer.
_OURS = frozenset(
    {
        *("n", "best_of", "use_beam_search", "stream", "stream_options", "echo", "model", "prompt"),
        *(
            "add_generation_prompt",
            "continue_final_message",
            "return_token_ids",
            "chat_template",
            "chat_template_kwargs",
        ),
    }
)


class RolloutEnded(RolloutError):
    """The run does not want this rollout any more: it stops, or the weights have changed too often."""


class Endpoints(Protocol):
    """Serves rollouts' models over HTTP."""

    def open(self, model: RolloutModel) -> Endpoint:
        """Serves a rollout's model, under a key of its own: the same for each call. Raises ConfigError."""
        ...

    def close(self, model: RolloutModel) -> None:
        """The rollout has ended: what it has under way is cancelled, and its key is refused."""
        ...


class Asking:
    """What one rollout asks of the model, by whatever names."""

    def __init__(
        self,
        session: Session,
        config: EngineConfig,
        *,
        refuse_ended: Callable[[], None] = lambda: None,
        on_turn: Callable[[Turn], None] = lambda turn: None,
        endpoints: Endpoints | None = None,
    ) -> None:
        """`refuse_ended` raises RolloutEnded where no further turn is wanted."""
        self.session = session
        self.limit: StopReason | None = None
        """The limit that was reached. `max_turns` holds from then on; another until a turn that was asked for later
        has succeeded."""
        self.ended: RolloutEnded | None = None
        self.on_ended: Callable[[], None] = lambda: None
        """Told once, when `ended` is set: whoever does not listen to exceptions is cancelled."""
        self.faults: dict[str, Exception] = {}
        """What failed of the infrastructure, by who asked."""
        self.busy_s = 0.0
        """Seconds in which a turn was under way."""
        self._config = config
        self._refuse_ended = refuse_ended
        self._on_turn = on_turn
        self._endpoints = endpoints
        self._served: RolloutModel | None = None
        """The model that was served over HTTP, where one was."""
        self._under_way, self._since = 0, 0.0
        self._asked, self._limit_at, self._fault_at = 0, 0, dict[str, int]()
        """How many turns were asked for: now, when `limit` was reached, and when each of `faults` came. What was asked
        for earlier and ends later takes neither back."""

    def __repr__(self) -> str:
        return f"<Asking {len(self.session.turns)} turns, {self._under_way} under way>"

    async def turn(self, ask: Ask) -> tuple[Message, int]:
        """One turn: the assistant's message, and the turn's index. Raises LimitReached, RolloutEnded, and as
        `Session.ask` does."""
        self._admit()
        self._asked += 1
        number = self._asked
        if not self._under_way:
            self._since = time.perf_counter()
        self._under_way += 1
        try:
            message, index = await self.session.ask(ask)
        except (ContextFull, PromptTooLong) as error:
            self._reached(StopReason.CONTEXT_LENGTH)
            raise LimitReached(str(error)) from error
        except (AuthenticationFailed, ModelNotFound) as error:  # every request would be refused: the run is
            self._failed(ask.agent, error)
            raise
        except RequestRefused:  # the same request would be refused again: the caller's, as a rule
            raise
        except (TransportError, FallbackRefused, InvariantBroken) as error:
            self._failed(ask.agent, error)
            raise
        finally:
            self._under_way -= 1
            if not self._under_way:
                self.busy_s += time.perf_counter() - self._since
        if self.limit is not StopReason.MAX_TURNS and number > self._limit_at:
            self.limit = None
        if self.faults and number > self._fault_at.get(ask.agent, number):
            del self.faults[ask.agent], self._fault_at[ask.agent]
        self._on_turn(self.session.turns[index])
        return message, index

    def _reached(self, limit: StopReason) -> None:
        if self.limit is not StopReason.MAX_TURNS:
            self.limit, self._limit_at = limit, self._asked

    def _failed(self, agent: str, error: Exception) -> None:
        self.faults[agent], self._fault_at[agent] = error, self._asked

    def _admit(self) -> None:
        try:
            self._refuse_ended()
        except RolloutEnded as ended:
            if self.ended is None:
                self.ended = ended
                self.on_ended()
            raise
        limit = self._config.max_turns
        if limit is not None and len(self.session.turns) + self._under_way >= limit:
            self._reached(StopReason.MAX_TURNS)
            raise LimitReached(f"the rollout has taken its {limit} turns (max_turns)")

    def settle_form(
        self, sampling: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, Any], Sequence[Mapping[str, Any]]]:
        """What is asked of an answer's form, as each turn's route does it. Raises MessageError."""
        return settle_form(sampling, tools, self._config, self.session.server)

    def endpoint(self, model: RolloutModel) -> Endpoint:
        """Where the rollout's model is served over HTTP, from the first call on. Raises ConfigError."""
        if self._endpoints is None:
            raise ConfigError("nothing here serves a rollout's model over HTTP: play it by an engine")
        endpoint = self._endpoints.open(model)
        self._served = model
        return endpoint

    def close(self) -> None:
        """The rollout has ended."""
        if self._served is not None and self._endpoints is not None:
            self._endpoints.close(self._served)
        self.session.close()


class RolloutModel:
    """What an agent is handed: see `rollout.agent.Model`."""

    def __init__(self, asking: Asking, name: str = "") -> None:
        self.asking = asking
        self.name = name
        """Who asks by it; "" is the rollout's own agent."""

    def __repr__(self) -> str:
        return f"<RolloutModel {self.name or 'of its agent'}, {self.asking!r}>"

    def agent(self, name: str) -> RolloutModel:
        """The same, asked by an agent of this name."""
        if not isinstance(name, str) or not name:
            raise ConfigError(f"an agent's name must be a text, not {name!r:.80}")
        return RolloutModel(self.asking, name)

    @property
    def limit(self) -> str | None:
        """The limit that was reached: see `Asking.limit`."""
        return self.asking.limit.value if self.asking.limit is not None else None

    @property
    def endpoint(self) -> Endpoint:
        """The rollout's model over HTTP. It is one for all names: programs say by headers who they are."""
        return self.asking.endpoint(self)

    async def chat(
        self,
        messages: Sequence[Any],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        max_tokens: int | None = None,
        template_args: Mapping[str, Any] | None = None,
        train: bool = True,
        **sampling: Any,
    ) -> Answer:
        """Has the model answer a conversation: see `rollout.agent.Model.chat`."""
        if wrong := _OURS.intersection(sampling):
            raise MessageError(f"chat takes no {min(wrong)!r}: one answer comes back, whole; ask again for another")
        if "max_completion_tokens" in sampling:  # a route of ids knows the other name only
            raise MessageError("chat takes no 'max_completion_tokens': use max_tokens")
        if not isinstance(train, bool):
            raise MessageError(f"train must be true or false, not {train!r:.80}")
        wanted: dict[str, Any] = _sampling(sampling) if sampling else {}
        shown = _tools(tools)
        if wanted:
            wanted, shown = self.asking.settle_form(wanted, shown)
        ask = Ask(
            messages=_messages(messages),
            tools=shown,
            template_args=None if template_args is None else _plain("template_args", template_args),
            max_tokens=_max_tokens(max_tokens),
            sampling=wanted,
            agent=self.name,
            train=train,
        )
        message, index = await self.asking.turn(ask)
        turn = self.asking.session.turns[index]
        usage = Usage(
            prompt_tokens=turn.prompt_tokens,
            completion_tokens=turn.completion_tokens,
            cached_tokens=turn.cached_tokens,
        )
        return Answer(message=message, finish_reason=turn.finish_reason, usage=usage, turn=index)


def _messages(messages: object) -> Sequence[object]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise MessageError(f"chat wants a list of messages, not {type(messages).__name__}")
    if not messages:
        raise MessageError("chat wants at least one message")
    return messages


def _tools(tools: object) -> Sequence[Mapping[str, Any]]:
    if tools is None:
        return ()
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise MessageError(f"tools must be a list of tools, not {type(tools).__name__}")
    return [_plain(f"tools[{at}]", tool) for at, tool in enumerate(tools)]


def _sampling(sampling: Mapping[str, Any]) -> dict[str, Any]:
    found = _plain("sampling", sampling)
    try:
        check_sampling(found)
    except ConfigError as error:
        raise MessageError(str(error)) from None
    return found


def _plain(what: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise MessageError(f"{what} must be a mapping, not {type(value).__name__}")
    try:
        found: dict[str, Any] = plain(value)
    except Refused as refused:
        raise MessageError(f"{what} cannot be sent: {refused}") from None
    return found


def _max_tokens(wanted: object) -> int | None:
    if wanted is None:
        return None
    try:
        return positive(wanted, "max_tokens")
    except Refused as refused:
        raise MessageError(str(refused)) from None

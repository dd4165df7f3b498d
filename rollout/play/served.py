"""A model as sessions use it: where it is served, how its messages become ids, and how much fits its context."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from rollout.codec.protocol import Codec
from rollout.config import EngineConfig
from rollout.errors import LimitReached
from rollout.loop.turnstile import Turnstile
from rollout.observe.spans import Spans
from rollout.play.logprobs import doubt, doubt_of, warn
from rollout.request import MessagePrompt, Reply, Request, Sampling, TokenPrompt
from rollout.servers.weights import Weights
from rollout.tokens.prefix import LastTurn
from rollout.transport import ServerInfo, Transport


class ContextFull(LimitReached):
    """The next turn does not fit the model's context. Nothing was sent."""


class ServedModel(msgspec.Struct, kw_only=True):
    """A model as sessions use it: where it is served, and how its messages become ids."""

    transport: Transport
    info: ServerInfo
    codec: Codec | None
    """None where there is neither a tokenizer nor /tokenize: every turn goes message-in."""
    config: EngineConfig
    weights: Weights = msgspec.field(default_factory=Weights)
    sleep: Callable[[float], Awaitable[None]] | None = None
    """Waits before a completion is asked for again that the server aborted by itself; None is the weights' clock."""
    spans: Spans | None = None
    """What is told of turns and requests; None without `EngineConfig.tracing`."""
    turnstile: Turnstile = msgspec.field(default_factory=Turnstile)
    """Before each piece of an episode's work: its start, each prompt, and each answer."""
    _last_sampling: tuple[Mapping[str, Any], Sampling | None, Sampling] | None = None
    """What was asked of which defaults, and what they came to: a run's turns ask for the same."""
    _doubted: set[str] | None = None
    """What was said of logprobs."""

    def sampling_of(self, asked: Mapping[str, Any]) -> Sampling:
        """What these parameters come to on this server."""
        defaults, last = self.info.sampling_defaults, self._last_sampling
        if last is None or last[0] is not asked or last[1] is not defaults:
            self._last_sampling = last = asked, defaults, Sampling.of(asked, defaults)
        return last[2]

    def warn_of(self, drawn: Sampling) -> None:
        """Says once what of a caller's own sampling would mislead a trainer. The run's own was looked at before."""
        if self._doubted is None:
            of_run = doubt(self.info, self.config)
            self._doubted = {of_run.event} if of_run is not None else set()
        found = doubt_of(self.info, drawn) if drawn.given else None
        if found is not None and found.event not in self._doubted:
            self._doubted.add(found.event)
            warn(found)

    async def generate(self, request: Request) -> Reply:
        """See `rollout.transport.Transport`."""
        if self.spans is None:
            return await self.transport.generate(request)
        with self.spans.request(request) as (headers, tell):
            reply = await self.transport.generate(msgspec.structs.replace(request, trace=headers))
            tell(reply)
        return reply

    @property
    def max_model_len(self) -> int | None:
        return self.config.max_model_len or self.info.max_model_len

    @property
    def stop_token_ids(self) -> Sequence[int]:
        return self.codec.stop_token_ids if self.codec is not None else ()

    async def room(
        self,
        prompt: TokenPrompt | MessagePrompt,
        wanted: int | None,
        last: LastTurn | None,
        render: Callable[[], Awaitable[Sequence[int] | None]],
    ) -> int | None:
        """How many tokens may be sampled. Raises ContextFull where none fit.

        `render` gives the ids of a prompt of messages, None where they cannot be made here.
        """
        limit = self.max_model_len
        if limit is None:
            return wanted
        if isinstance(prompt, TokenPrompt):
            length = prompt.length
        else:
            # A token is at least a byte, so a short prompt need not be rendered to know that it fits.
            length = _most_tokens(prompt, last)
            if length + (wanted or 1) > limit:
                if self.codec is None or (ids := await render()) is None:
                    return wanted
                length = len(ids)
                media = length < limit and any(message.is_multimodal for message in prompt.messages)
                if media and (wanted is None or wanted >= limit - length):
                    return None  # what is read for an image nobody knows here: the server says how much is left
            elif wanted is None:
                return None
        if length >= limit:
            raise ContextFull(f"the prompt has {length} tokens, the model's context {limit}")
        return min(wanted or limit, limit - length)


def sampling_within(sampling: Mapping[str, Any], most: int | None, room: int | None) -> Mapping[str, Any]:
    """A completion's parameters. Servers refuse a minimum above the maximum: it is cut where the maximum was.

    `most` is the run's maximum, `room` what is left of it.
    """
    least = sampling.get("min_tokens")
    if room is None or not isinstance(least, int) or least <= room:
        return sampling
    asked = most is None or least <= most
    return {**sampling, "min_tokens": room} if asked else sampling


def _most_tokens(prompt: MessagePrompt, last: LastTurn | None) -> int:
    """A bound on a prompt's tokens that needs no tokenizer: its bytes, and much for the template's own text.

    Behind a prompt that the server has counted it is that and the bytes of what is new.
    """
    counted = last.sent if last is not None and last.sent_tokens else None
    if last is not None and counted is not None and (added := prompt.added_to(counted)) is not None:
        messages, size = added
        return last.sent_tokens + size + 32 * messages + 256
    size = prompt.size + 32 * len(prompt.messages)
    return size + (2_048 + len(msgspec.json.encode(list(prompt.tools))) if prompt.tools else 0) + 256

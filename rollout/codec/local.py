"""Messages to ids and back, for one model: the bridges in their order, off the event loop when it is long.

A codec has two lanes, each with a tokenizer of its own: short work runs at once on the event loop's
lane, long work in a worker thread on the other, one at a time. What blocks the loop is bounded by
`LONG_CHARS` and `LONG_IDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from rollout.chat.messages import Message
from rollout.codec.families import choose_family
from rollout.codec.literal import LiteralTokenizer
from rollout.codec.protocol import Codec
from rollout.codec.readers import Reader, Sampled, choose_reader, read
from rollout.codec.readers.plain import PLAIN
from rollout.codec.renderer import RendererBridge
from rollout.codec.source import template_source
from rollout.codec.template import TemplateBridge
from rollout.codec.tokenizer import configured_stop_ids, copy_tokenizer, load_tokenizer
from rollout.codec.types import Bridge, Bridged, Context, Declined, Previous, as_shown, make_context
from rollout.door import error_text
from rollout.errors import ConfigError
from rollout.log import get_logger
from rollout.memo import Memo

#: Beyond these the work leaves the event loop: about a millisecond of tokenizing or copying.
LONG_CHARS = 4_000
LONG_IDS = 8_000

#: How much of a prompt's end readers are shown: a generation prompt, which may have opened reasoning or a channel.
GENERATION_PROMPT = 16

_LATE_KEPT = 256

T = TypeVar("T")
_log = get_logger(__name__)


class Lane:
    """The bridges over one copy of the tokenizer, for one thread at a time."""

    def __init__(
        self,
        tokenizer: Any,
        family: str | None,
        thinking_retention: str,
        stop_ids: Sequence[int],
        reader: Reader | None = None,
        *,
        literal: bool = True,
    ) -> None:
        """`literal` keeps markers that are typed in texts as text. `reader` reads what was sampled; None has it chosen
        here, by what the model is."""
        self._tokenizer = LiteralTokenizer(tokenizer)
        self.reader = reader or choose_reader(tokenizer, family=family)
        has_template = bool(tokenizer.chat_template)
        self.renderer = (
            RendererBridge(tokenizer, family, thinking_retention, stop_ids, by_template=has_template, literal=literal)
            if family
            else None
        )
        self.stop_token_ids = self.renderer.stop_token_ids if self.renderer else list(dict.fromkeys(stop_ids))
        self._late = Memo[tuple[object, ...], bool](_LATE_KEPT)
        self._stops = frozenset(self.stop_token_ids)
        if self.renderer is not None:
            self.template = self.renderer.template
        else:
            self.template = TemplateBridge(tokenizer, self.stop_token_ids, literal=literal) if has_template else None
        # Where two renderers differ the template wins, so a family's own rendering serves only where there is none.
        own = self.renderer.stand_in if self.renderer and self.template is None else None
        self._bridges: list[Bridge] = [bridge for bridge in (self.renderer, self.template, own) if bridge is not None]

    @property
    def knows_developer(self) -> bool:
        """Whether the template names the role `developer`; a family without a template may."""
        return self.template is None or template_source(self._tokenizer).knows_developer

    @property
    def vocab_size(self) -> int | None:
        """One more than the highest id; None for a tokenizer that does not say."""
        try:
            return 1 + int(max(self._tokenizer.get_vocab().values()))
        except (AttributeError, TypeError, ValueError):
            return None

    def extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined:
        """The first bridge that gives ids. A bridge that raises declines, and its cause is logged."""
        reasons = []
        for bridge in self._bridges_for(tail):
            try:
                found = bridge.extend(previous, tail, context)
            except Exception as error:  # a renderer's or a template's bug must cost a fallback, not the rollout
                said = f"{type(error).__name__}: {error_text(error)}"
                _log.warning("bridge_raised", bridge=bridge.name, error=said, exc_info=error)
                found = Declined(said)
            if isinstance(found, Bridged):
                return found
            reasons.append(f"{bridge.name}: {found.reason}")
        return Declined("; ".join(reasons) or "no bridge for this model")

    def _bridges_for(self, tail: Sequence[Message]) -> list[Bridge]:
        """With images only the template: it writes one placeholder for each, where families may write what is read."""
        if self.template is None or not any(message.is_multimodal for message in tail):
            return self._bridges
        return [self.template]

    def render(self, messages: Sequence[Message], context: Context) -> list[int]:
        """A whole prompt's ids: by the model's own template where there is one."""
        source = self.template or self.renderer
        if source is None:
            raise ConfigError("the tokenizer has no chat template and no renderer: name one by --renderer")
        return source.render(messages, context)

    def shows_late(self, before: str, role: str, behind: str, context: Context) -> bool:
        """Whether the template shows a message of this role in such a place. Asked once."""
        key = (context.key, before, role, behind)
        bridge = self.template or (self.renderer.stand_in if self.renderer else None)
        if key not in self._late:
            self._late[key] = bridge is None or bridge.shows_late(before, role, behind, context)
        return self._late[key]

    def has_typed_markers(self, messages: Sequence[Message]) -> bool:
        source = self.template or self.renderer
        return source is not None and source.has_typed_markers(messages)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def parse(self, prompt_ids: Sequence[int], completion_ids: list[int], context: Context) -> Message:
        """The assistant's message. What the model sampled never raises."""
        return read(self.reader or PLAIN, self.sampled(prompt_ids, completion_ids, context))

    def sampled(self, prompt_ids: Sequence[int], completion_ids: list[int], context: Context) -> Sampled:
        """A turn, as readers are shown it."""
        ended = bool(completion_ids) and completion_ids[-1] in self._stops
        return Sampled(
            text=self.decode(completion_ids[: len(completion_ids) - ended]),
            prompt_end=self.decode(prompt_ids[-GENERATION_PROMPT:]),
            tools=context.tools,
            ended=ended,
        )


class LocalCodec(Codec):
    """Bridges over a local tokenizer."""

    has_tokenizer = True

    def __init__(self, make_lane: Callable[[], Lane], description: str) -> None:
        self._here = make_lane()
        # Made now: copying a tokenizer lets no other thread run, and would stop a loop that plays for a second.
        self._there = make_lane()
        self._there_limit = anyio.CapacityLimiter(1)
        self.stop_token_ids = self._here.stop_token_ids
        self.description = description
        self.reader = self._here.reader
        self.vocab_size = self._here.vocab_size
        self.knows_developer = self._here.knows_developer

    async def extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined:
        long = len(previous.completion_ids) > LONG_IDS or sum(len(message.text) for message in tail) > LONG_CHARS
        return await self._run(lambda lane: lane.extend(previous, tail, context), long=long)

    async def render(self, messages: Sequence[Message], context: Context) -> list[int]:
        if self.tool_fields and context.tools:
            context = make_context([as_shown(tool, self.tool_fields) for tool in context.tools], context.template_args)
        long = sum(len(message.text) for message in messages) > LONG_CHARS
        return await self._run(lambda lane: lane.render(messages, context), long=long)

    async def parse(self, prompt_ids: Sequence[int], completion_ids: list[int], context: Context) -> Message:
        long = len(completion_ids) > LONG_IDS
        return await self._run(lambda lane: self.read(lane.sampled(prompt_ids, completion_ids, context)), long=long)

    async def decode(self, ids: Sequence[int]) -> str:
        return await self._run(lambda lane: lane.decode(ids), long=len(ids) > LONG_IDS)

    async def shows_late(self, before: str, role: str, behind: str, context: Context) -> bool:
        return self._here.shows_late(before, role, behind, context)

    def has_typed_markers(self, messages: Sequence[Message]) -> bool:
        return self._here.has_typed_markers(messages)

    async def _run(self, work: Callable[[Lane], T], *, long: bool) -> T:
        if not long:
            return work(self._here)
        return await anyio.to_thread.run_sync(lambda: work(self._there), limiter=self._there_limit)


def load_codec(
    tokenizer_name: str,
    *,
    renderer: str = "auto",
    thinking_retention: str = "all",
    reader: str = "auto",
    literal: bool = True,
) -> LocalCodec:
    """The codec of a tokenizer. Blocks for seconds: call it in a thread. Raises ConfigError.

    `literal` keeps special tokens that are typed in texts as text.
    """
    tokenizer = load_tokenizer(tokenizer_name)
    family = choose_family(tokenizer, renderer)
    if family is None and not tokenizer.chat_template:
        raise ConfigError(f"tokenizer {tokenizer_name!r} has no chat template; name a family by --renderer")
    stops = configured_stop_ids(tokenizer, tokenizer_name)
    description = f"renderer {family}, then template" if family else "template"
    chosen = choose_reader(tokenizer, reader, family=family)

    def make_lane() -> Lane:
        return Lane(copy_tokenizer(tokenizer), family, thinking_retention, stops, chosen, literal=literal)

    return LocalCodec(make_lane, description)

"""The bridge by a hand-written family of `renderers`, which knows reasoning and cut-offs. One lane, one thread.

A family serves only where it writes what the model's own template writes, for this shape of tail and these template
arguments. That is proved by texts that templates treat in ways of their own (spaces at the ends, JSON, several lines),
and says nothing of a text in which the template may find something, or of a history at which it looks back: those are
the template bridge's. Without a template the family's own rendering of whole conversations is the measure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from rollout.chat.canonical import value_digest
from rollout.chat.messages import Message, with_tool_names
from rollout.codec import stand_in
from rollout.codec.literal import LiteralTokenizer
from rollout.codec.pattern import Pattern, has_switch, learn, other_completions, probed, texts_of
from rollout.codec.template import StandInBridge, TemplateBridge, literally
from rollout.codec.tokenizer import template_form
from rollout.codec.types import Bridged, Context, Declined, Previous
from rollout.memo import Memo

#: How much of a prompt's end renderers are shown. What they look for there is the generation prompt: has it opened
#: reasoning, which role speaks. Handing them all of it costs 7 ms a turn at 20,000 ids.
PROMPT_END = 128

#: How much of it tells whether the generation prompt has opened reasoning.
_OPENING = 8

#: Shapes of tails that are remembered.
_SHAPES_SEEN = 1_024

#: Renderers that are kept, one for each set of chat-template arguments.
_RENDERERS_KEPT = 32


#: What hand-written families look for in texts begins with one of these: tags, switches (`/no_think`), brackets, JSON.
_READ = ("<", "/", "[", "{")


def _may_be_read(text: str) -> bool:
    return any(map(text.__contains__, _READ))


def _named(previous: Previous, tail: Sequence[Message]) -> Sequence[Message]:
    """Tools' messages with their functions' names: families such as gpt-oss's write them, callers leave them out."""
    return with_tool_names([previous.message, *tail])[1:] if previous.message is not None else tail


class RendererBridge:
    """Bridges and renders with a family of `renderers`.

    Chat-template arguments become the family's own settings; one that it does not take makes it decline.
    """

    name = "renderer"

    learnt_after = 16
    """How often a shape is seen before its pattern is learnt, which asks the family 30 times: shapes that hardly come
    again, with ids of calls or odd markers in them, are not worth that."""

    def __init__(
        self,
        tokenizer: Any,
        family: str,
        thinking_retention: str,
        stop_token_ids: Collection[int] = (),
        *,
        by_template: bool = False,
        literal: bool = True,
    ) -> None:
        """`by_template` has the family serve only where it writes what the tokenizer's template writes; `literal` keeps
        markers that are typed in texts as text."""
        self._tokenizer = LiteralTokenizer(tokenizer, literal=literal)
        self._family = family
        self._retention = thinking_retention
        self._renderers = Memo[bytes, Any](_RENDERERS_KEPT)
        self.stop_token_ids = list(dict.fromkeys([*self._renderer({}).get_stop_token_ids(), *stop_token_ids]))
        self._stops = frozenset(self.stop_token_ids)
        self.stand_in = StandInBridge("stand_in", self.render, self.stop_token_ids, _may_be_read)
        """The family's rendering as a bridge of its own: where there is no template, the measure of the family's
        bridge, and what serves where that declines."""
        self.template = TemplateBridge(tokenizer, self.stop_token_ids, literal=literal) if by_template else None
        self._patterns = Memo[object, Pattern | None](_SHAPES_SEEN)
        self._seen = Memo[object, int](_SHAPES_SEEN)
        self._unlike = Memo[object, bool](_SHAPES_SEEN)
        self._needs_all = Memo[object, bool](_SHAPES_SEEN)
        self._ids_matter = Memo[object, bool](_SHAPES_SEEN)

    def has_typed_markers(self, messages: Sequence[Message]) -> bool:
        """Whether a text holds a marker that is to stay text."""
        return self._tokenizer.has_typed_markers(messages)

    def _renderer(self, template_args: Mapping[str, Any]) -> Any:
        """The family with these arguments. Raises NotExtendable where it does not take them, ValueError if unknown."""
        key = value_digest(template_args)
        if key not in self._renderers:
            self._renderers[key] = self._made(template_args)
        if isinstance(found := self._renderers[key], stand_in.NotExtendable):
            raise stand_in.NotExtendable(*found.args)
        return found

    def _made(self, template_args: Mapping[str, Any]) -> Any:
        """A renderer of the family, or why there is none."""
        from renderers import create_renderer  # imported here: it takes a second
        from renderers.configs import config_from_name

        config = config_from_name(self._family)
        if config is None:
            raise ValueError(f"renderers has no family {self._family!r}")
        config = type(config)(thinking_retention=self._retention)
        if not template_args:
            return create_renderer(self._tokenizer, config)
        try:
            return create_renderer(self._tokenizer, config, chat_template_kwargs=dict(template_args))
        except ValueError as error:  # pydantic's among them: the wrong value of one that it knows
            return stand_in.NotExtendable(
                f"the {self._family} renderer does not take the template's arguments: {error}"
            )

    def render(self, messages: Sequence[Message], context: Context, *, add_generation_prompt: bool = True) -> list[int]:
        renderer, tools = self._renderer(context.template_args), list(context.tools) or None

        def make(messages: Sequence[Message]) -> list[int]:
            forms = [template_form(message) for message in with_tool_names(messages)]
            return list(renderer.render_ids(forms, tools=tools, add_generation_prompt=add_generation_prompt))

        return literally(self._tokenizer, messages, make)

    def extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined:
        alike, exactly = self._shapes(previous, tail, context)
        if self._unlike.get(self._measured_as(previous, alike, context)):
            return Declined(self._said_unlike)
        texts = texts_of(tail) if previous.completion_ids else None
        plain = texts is not None and all(map(self._tokenizer.is_plain, texts))
        if self.template is not None and (
            fault := self._unproved(self.template, texts, plain, previous, tail, context)
        ):
            return Declined(fault)
        # Where there is a template it tells what it looks for, and that was asked.
        if texts is None or not plain or (self.template is None and any(map(has_switch, texts))):
            return self._by_family(previous, tail, context)
        key = self._pattern_key(previous, exactly, context)
        if key not in self._patterns:
            found = self._by_family(previous, tail, context)
            self._learn(key, found, previous, tail, context)
            return found
        pattern = self._patterns[key]
        if pattern is None:
            return self._by_family(previous, tail, context)
        return Bridged(pattern.filled(texts, self._tokenizer.plain_ids), self.name)

    def _unproved(
        self,
        template: TemplateBridge,
        texts: Sequence[str] | None,
        plain: bool,
        previous: Previous,
        tail: Sequence[Message],
        context: Context,
    ) -> str:
        """Why no proof can be had that the family writes what the template does; "" where one can."""
        if previous.completion_ids and (texts is None or not plain or any(map(template.may_find, texts))):
            return "the tail has more than text in it, or what the template may look for"
        try:
            looks_back = template.looks_back(previous, tail, context)
        except stand_in.NotExtendable as error:
            return str(error)
        return "the template looks back at earlier messages" if looks_back else ""

    def _pattern_key(self, previous: Previous, shape: object, context: Context) -> object:
        """Equal where the family writes the same around a tail's texts: texts do not count, markers do.

        So does how the turn ended, by which stop token or cut off, and whether it began with a marker: an opener of
        reasoning is one at the start only.
        """
        said, sampled = previous.message, previous.completion_ids
        form = said is not None and (
            said.content is None,
            said.reasoning_content is None,
            len(said.malformed_tool_calls),
        )
        markers = self._tokenizer.markers_in
        around = markers(previous.prompt_ids[-_OPENING:]), markers(sampled[:1]), markers(sampled)
        end = sampled[-1] if sampled[-1] in self._stops else None
        return context.key, shape, form, around, end

    def _shapes(self, previous: Previous, tail: Sequence[Message], context: Context) -> tuple[object, object]:
        """What is equal for tails that the family writes alike but for their texts: by the forms of their call ids, and
        by these themselves, which count where it prints them.

        Ids that differ in letters and digits only are of one form: around one a family writes what it writes around
        another.
        """
        shape, ids = stand_in.shape_key(previous.message, tail), stand_in.call_ids(previous.message, tail)
        if not ids:
            return shape, shape
        key = context.key, shape
        if key not in self._ids_matter:
            self._ids_matter[key] = self._do_ids_matter(previous, tail, context)
        if not self._ids_matter[key]:
            return shape, shape
        return (shape, tuple(map(stand_in.id_form, ids))), (shape, ids)

    def _do_ids_matter(self, previous: Previous, tail: Sequence[Message], context: Context) -> bool:
        """Whether the family writes something else for other call ids, in its bridge or in a whole conversation."""
        tail = _named(previous, tail)
        try:
            tails = [tail, *(other for _, other in stand_in.renamed(previous.message, tail))]
            written = [self._bridge(previous.prompt_ids, previous.completion_ids, each, context) for each in tails]
            return any(each != written[0] for each in written) or self.stand_in.ids_matter(previous, tail, context)
        except Exception:  # a family that declines or raises for some ids reads them
            return True

    def _learn(
        self, key: object, found: Bridged | Declined, previous: Previous, tail: Sequence[Message], context: Context
    ) -> None:
        """Learns the pattern of a shape that comes often."""
        self._seen[key] = seen = self._seen.get(key, 0) + 1
        if seen < self.learnt_after:
            return
        self._patterns[key] = None
        if isinstance(found, Bridged):
            # A family that declines or raises on a probe has no pattern; what it wrote for this turn stands.
            with contextlib.suppress(Exception):
                pattern = learn(self._tokenizer, tail, lambda t: self._extend(previous, t, context))
                said = other_completions(self._tokenizer, previous.completion_ids, self._stops)
                longer = [*previous.prompt_ids, *previous.prompt_ids]  # some family may read all of a prompt
                others = (msgspec.structs.replace(previous, prompt_ids=longer, completion_ids=ids) for ids in said)
                if all(self._extend(other, tail, context) == found.ids for other in others):
                    self._patterns[key] = pattern

    def _by_family(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined:
        """What the family itself writes."""
        try:
            found = Bridged(literally(self._tokenizer, tail, lambda t: self._extend(previous, t, context)), self.name)
        except stand_in.NotExtendable as error:
            return Declined(str(error))
        return Declined(self._said_unlike) if self._is_unlike(found, previous, tail, context) else found

    @property
    def _said_unlike(self) -> str:
        measure = "it renders" if self.template is None else "the template writes"
        return f"the {self._family} renderer's bridge is not what {measure}"

    def _measured_as(self, previous: Previous, shape: object, context: Context) -> object:
        """Equal for what one comparison with the measure speaks for: a shape of tail, behind an end of the turn."""
        end = previous.completion_ids[-1] if previous.completion_ids else None
        return context.key, shape, end if end in self._stops else None

    def _is_unlike(self, found: Bridged, previous: Previous, tail: Sequence[Message], context: Context) -> bool:
        """Whether the family bridges this shape of tail in another way than the template, or than it renders itself.

        Laguna's bridge leaves out a newline, for one. Asked once per shape. How a turn that was cut off is closed is
        the family's to know.
        """
        cut = not previous.completion_ids or previous.completion_ids[-1] not in self._stops
        if cut and self.template is None:
            return False
        key = self._measured_as(previous, self._shapes(previous, tail, context)[0], context)
        if key not in self._unlike:
            self._unlike[key] = self._is_refuted(found, previous, tail, context, cut=cut)
        return self._unlike[key]

    def _is_refuted(
        self, found: Bridged, previous: Previous, tail: Sequence[Message], context: Context, *, cut: bool
    ) -> bool:
        if self.template is None:
            rendered = self.stand_in.extend(previous, tail, context)
            return isinstance(rendered, Bridged) and rendered.ids != found.ids
        # Behind a turn that was cut off the family may write more, to close it, but ends as the template does.
        ended = msgspec.structs.replace(previous, completion_ids=self.stop_token_ids[:1]) if cut else previous
        try:
            for other in [tail, *(probed(tail) if texts_of(tail) is not None else ())]:
                ids = found.ids if other is tail else self._extend(previous, other, context)
                written = self.template.extend(ended, other, context)
                if not isinstance(written, Bridged) or ids[len(ids) - len(written.ids) :] != written.ids:
                    return True
                if not cut and len(ids) != len(written.ids):
                    return True
        except Exception:  # a family that declines or raises for some texts reads them
            return True
        return False

    def _extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> list[int]:
        """Raises NotExtendable."""
        prompt_ids, tail = previous.prompt_ids, _named(previous, tail)
        if len(prompt_ids) <= PROMPT_END:
            return self._bridge(prompt_ids, previous.completion_ids, tail, context)
        end = previous.completion_ids[-1] if previous.completion_ids else None
        key = (context.key, self._shapes(previous, tail, context)[0], end in self.stop_token_ids)
        if self._needs_all.get(key) is False:
            return self._bridge(prompt_ids[-PROMPT_END:], previous.completion_ids, tail, context)
        whole = self._tried(prompt_ids, previous.completion_ids, tail, context)
        if key not in self._needs_all:
            shown = self._tried(prompt_ids[-PROMPT_END:], previous.completion_ids, tail, context)
            both = isinstance(shown, stand_in.NotExtendable) and isinstance(whole, stand_in.NotExtendable)
            self._needs_all[key] = shown != whole and not both
        if isinstance(whole, stand_in.NotExtendable):
            raise whole
        return whole

    def _tried(
        self, prompt_ids: Sequence[int], completion_ids: list[int], tail: Sequence[Message], context: Context
    ) -> list[int] | stand_in.NotExtendable:
        """The ids, or why there are none: a family that declines is shown no more of later prompts than others."""
        try:
            return self._bridge(prompt_ids, completion_ids, tail, context)
        except stand_in.NotExtendable as error:
            return error

    def _bridge(
        self, prompt_ids: Sequence[int], completion_ids: list[int], tail: Sequence[Message], context: Context
    ) -> list[int]:
        """Raises NotExtendable."""
        prompt_ids = list(prompt_ids)
        rendered = self._renderer(context.template_args).bridge_to_next_turn(
            prompt_ids, completion_ids, [template_form(message) for message in tail], tools=list(context.tools) or None
        )
        if rendered is None:
            raise stand_in.NotExtendable(f"the {self._family} renderer declines")
        ids: list[int] = rendered if isinstance(rendered, list) else rendered.token_ids
        sent = [*prompt_ids, *completion_ids]
        # Renderers cut what follows the first stop token of a completion; sampled ids may not be cut.
        if ids[: len(sent)] != sent:
            raise stand_in.NotExtendable(f"the {self._family} renderer changes sampled ids")
        return ids[len(sent) :]

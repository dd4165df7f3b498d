"""The bridges by stand-ins: over the model's own chat template, or whatever else renders its conversations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from rollout.chat.messages import Message
from rollout.codec import late, stand_in
from rollout.codec.history import ShapeCache
from rollout.codec.literal import LiteralTokenizer, NotLiteral
from rollout.codec.source import any_of, template_source
from rollout.codec.tokenizer import template_ids
from rollout.codec.types import Bridged, Context, Declined, Previous


class StandInBridge:
    """Bridges by rendering stand-ins, with whatever renders this model's conversations."""

    def __init__(
        self,
        name: str,
        render: Callable[..., list[int]],
        stop_token_ids: Collection[int],
        finds: Callable[[str], object] | None = None,
    ) -> None:
        self.name = name
        self.stop_token_ids = list(stop_token_ids)
        self._render = render
        """(messages, context, add_generation_prompt=) -> ids."""
        self._shapes = ShapeCache(finds=finds)

    def extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined:
        steps = self._shapes.steps(previous, tail, context.key, self.stop_token_ids)
        try:
            return Bridged(stand_in.drive(steps, self._renders(context)), self.name)
        except stand_in.NotExtendable as error:
            return Declined(str(error))

    def looks_back(self, previous: Previous, tail: Sequence[Message], context: Context) -> bool:
        """Whether what is rendered for such a tail depends on the history. Raises NotExtendable."""
        steps = self._shapes.looks_back(previous, tail, context.key, self.stop_token_ids)
        return stand_in.drive(steps, self._renders(context))

    def shows_late(self, before: str, role: str, behind: str, context: Context) -> bool:
        """Whether a message of this role is shown in such a place."""
        return stand_in.drive(late.shows_late(before, role, behind), self._renders(context))

    def ids_matter(self, previous: Previous, tail: Sequence[Message], context: Context) -> bool:
        """Whether what is rendered for such a tail depends on its call ids."""
        steps = self._shapes.ids_matter(previous.message, tail, context.key)
        return stand_in.drive(steps, self._renders(context))

    def _renders(self, context: Context) -> Callable[[stand_in.Conversation], list[int]]:
        def render(conversation: stand_in.Conversation) -> list[int]:
            more = conversation.add_generation_prompt
            return self._render(conversation.messages, context, add_generation_prompt=more)

        return render


class TemplateBridge(StandInBridge):
    """Bridges and renders with the tokenizer's chat template."""

    def __init__(self, tokenizer: Any, stop_token_ids: Collection[int], *, literal: bool = True) -> None:
        """`literal` keeps markers that are typed in texts as text."""
        self._tokenizer = LiteralTokenizer(tokenizer, literal=literal)
        source = any_of([template_source(self._tokenizer, tools=tools) for tools in (False, True)])
        self._sought = source.sought or ()
        self.may_find = source.may_find
        """Whether the template may find something in a text that it looks for."""
        super().__init__("template", self.render, stop_token_ids, source.finds)

    def has_typed_markers(self, messages: Sequence[Message]) -> bool:
        """Whether a text holds a marker that is to stay text."""
        return self._tokenizer.has_typed_markers(messages)

    def render(self, messages: Sequence[Message], context: Context, *, add_generation_prompt: bool = True) -> list[int]:
        def make(messages: Sequence[Message]) -> list[int]:
            return template_ids(
                self._tokenizer,
                messages,
                context.tools,
                context.template_args,
                add_generation_prompt=add_generation_prompt,
            )

        return literally(self._tokenizer, messages, make, self._sought)

    def extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined:
        found = super().extend(previous, tail, context)
        if isinstance(found, Declined) or not self._in_reasoning(previous):
            return found
        return Bridged([*self._tokenizer.encode("</think>", add_special_tokens=False), *found.ids], found.bridge)

    def _in_reasoning(self, previous: Previous) -> bool:
        """Whether a completion was cut off in its reasoning, which must be closed before the turn is."""
        ids = previous.completion_ids
        if ids and ids[-1] in self.stop_token_ids:
            return False
        text = self._tokenizer.decode(ids)
        opened = text.lstrip().startswith("<think>") or self._opens_reasoning(previous.prompt_ids)
        return opened and "</think>" not in text

    def _opens_reasoning(self, prompt_ids: Sequence[int]) -> bool:
        return bool(self._tokenizer.decode(list(prompt_ids[-8:])).rstrip().endswith("<think>"))


def _revealed(
    tokenizer: LiteralTokenizer,
    make: Callable[[Sequence[Message]], list[int]],
    hidden: Sequence[Message],
    harmless: Sequence[int],
) -> list[int]:
    """What is made of messages with private characters, each marker put back as text. Raises NotLiteral."""
    with tokenizer.revealing():
        found = make(hidden)
    tokenizer.check(found, harmless)
    return found


def literally(
    tokenizer: LiteralTokenizer,
    messages: Sequence[Message],
    make: Callable[[Sequence[Message]], list[int]],
    sought: Collection[str] = (),
) -> list[int]:
    """What `make` gives for messages, with special-token text kept as text. Raises NotExtendable where it cannot be.

    `sought` is what a template looks for in texts: it is to find that although it is special-token text, and may cut
    the text there, as `content.split('</think>')[-1]` does.
    """
    try:
        hidden = tokenizer.hide(messages)
        if hidden is None:
            return make(messages)
        harmless = make(tokenizer.harmless(messages))
        written = make(messages)
        if tokenizer.is_literal(written, harmless):  # the renderer keeps it as text by itself, as harmony does
            return written
        found = _revealed(tokenizer, make, hidden, harmless)
        if tokenizer.is_same_text(found, written):
            return found
        shown = tokenizer.markers_with(sought)
        if shown and (hidden := tokenizer.hide(messages, shown)) is not None:
            found = _revealed(tokenizer, make, hidden, harmless)
            if tokenizer.is_same_text(found, written):
                return found
    except NotLiteral as error:
        raise stand_in.NotExtendable(str(error)) from error
    raise stand_in.NotExtendable("the template looks for special-token text that a message has")

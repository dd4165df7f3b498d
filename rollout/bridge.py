"""New messages -> ids: the bridge from what was sampled to the next prompt. One lane, one thread.

A bridge gives the ids that follow a completion, or declines with a reason. It never touches the ids that
are there: what it answers is only what is appended.

    RendererBridge   the `renderers` family of the model: hand-written, knows reasoning and cut-offs
    TemplateBridge   any Hugging Face chat template, by stand-ins (`rollout.stand_in`)

The server bridge, for models without a local tokenizer, needs the network: `rollout.codec` has it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from rollout import stand_in
from rollout.messages import Message, value_digest, with_tool_names
from rollout.parsing import from_renderer, parse_text
from rollout.tokenizer import template_form, template_ids


class Previous(msgspec.Struct, frozen=True, kw_only=True):
    """The turn that a bridge starts from."""

    prompt_ids: list[int]
    completion_ids: list[int]
    message: Message | None
    """The assistant's message, whose calls the tail's tool messages answer."""
    history: Sequence[Message] = ()
    """The messages before it."""


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What else decides a prompt's tokens."""

    tools: Sequence[Mapping[str, Any]] = ()
    template_args: Mapping[str, Any] = {}
    key: bytes = b""
    """Equal for equal tools and arguments."""


class Bridged(msgspec.Struct, frozen=True):
    """The ids that follow the completion, the generation prompt included."""

    ids: list[int]
    bridge: str


class Declined(msgspec.Struct, frozen=True):
    """Why no bridge can be made."""

    reason: str


class Bridge(Protocol):
    """One way to make bridges. Called by one thread at a time."""

    name: str

    def extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined: ...


class RendererBridge:
    """Bridges, renders and parses with a family of `renderers`.

    Chat-template arguments become the family's own settings; one that it does not take makes it decline.
    """

    name = "renderer"

    def __init__(self, tokenizer: Any, family: str, thinking_retention: str) -> None:
        self._tokenizer = tokenizer
        self._family = family
        self._retention = thinking_retention
        self._renderers: dict[bytes, Any] = {}
        self.stop_token_ids: list[int] = list(self._renderer({}).get_stop_token_ids())

    def _renderer(self, template_args: Mapping[str, Any]) -> Any:
        key = value_digest(template_args)
        if key not in self._renderers:
            from renderers import create_renderer  # imported here: it takes a second
            from renderers.configs import config_from_name

            config = config_from_name(self._family)
            if config is None:
                raise ValueError(f"renderers has no family {self._family!r}")
            config = type(config)(thinking_retention=self._retention)
            self._renderers[key] = create_renderer(
                self._tokenizer, config, chat_template_kwargs=dict(template_args) or None
            )
        return self._renderers[key]

    def render(self, messages: Sequence[Message], context: Context) -> list[int]:
        forms = [template_form(message) for message in with_tool_names(messages)]
        tools = list(context.tools) or None
        ids = self._renderer(context.template_args).render_ids(forms, tools=tools, add_generation_prompt=True)
        return list(ids)

    def extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined:
        renderer = self._renderer(context.template_args)
        rendered = renderer.bridge_to_next_turn(
            previous.prompt_ids,
            previous.completion_ids,
            [template_form(message) for message in tail],
            tools=list(context.tools) or None,
        )
        if rendered is None:
            return Declined(f"the {self._family} renderer declines")
        ids = rendered if isinstance(rendered, list) else rendered.token_ids
        sent = [*previous.prompt_ids, *previous.completion_ids]
        # Renderers cut what follows the first stop token of a completion; sampled ids may not be cut.
        if ids[: len(sent)] != sent:
            return Declined(f"the {self._family} renderer changes sampled ids")
        return Bridged(ids[len(sent) :], self.name)

    def parse(self, prompt_ids: list[int], completion_ids: list[int], context: Context) -> Message:
        parsed = self._renderer(context.template_args).parse_response(
            completion_ids, tools=list(context.tools) or None, prompt_ids=prompt_ids
        )
        stops = set(self.stop_token_ids)
        end = next((i for i, token in enumerate(completion_ids) if token in stops), len(completion_ids))
        return from_renderer(parsed, completion_ids[:end], self._tokenizer.decode)


class TemplateBridge:
    """Bridges, renders and parses with the tokenizer's chat template."""

    name = "template"

    def __init__(self, tokenizer: Any, stop_token_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._shapes = ShapeCache()
        self.stop_token_ids = list(stop_token_ids)

    def render(self, messages: Sequence[Message], context: Context) -> list[int]:
        return self._ids(stand_in.Conversation(messages), context)

    def extend(self, previous: Previous, tail: Sequence[Message], context: Context) -> Bridged | Declined:
        end = previous.completion_ids[-1] if previous.completion_ids else None
        steps = self._shapes.steps(previous.message, tail, context, end, self.stop_token_ids, self._eos_id)
        try:
            ids = stand_in.drive(steps, lambda conversation: self._ids(conversation, context))
        except stand_in.NotExtendable as error:
            return Declined(str(error))
        return Bridged(ids, self.name)

    def parse(self, prompt_ids: list[int], completion_ids: list[int], context: Context) -> Message:
        stops = set(self.stop_token_ids)
        end = len(completion_ids) - (bool(completion_ids) and completion_ids[-1] in stops)
        prompt_end = self._tokenizer.decode(prompt_ids[-8:], skip_special_tokens=False)
        text = self._tokenizer.decode(completion_ids[:end], skip_special_tokens=False)
        return parse_text(text, in_reasoning=prompt_end.rstrip().endswith("<think>"))

    @property
    def _eos_id(self) -> int | None:
        eos: int | None = self._tokenizer.eos_token_id
        return eos

    def _ids(self, conversation: stand_in.Conversation, context: Context) -> list[int]:
        return template_ids(
            self._tokenizer,
            conversation.messages,
            context.tools,
            context.template_args,
            add_generation_prompt=conversation.add_generation_prompt,
        )


class ShapeCache:
    """The shapes that were proved, and those that cannot be: a proof is asked for once."""

    def __init__(self, size: int = 256) -> None:
        self._shapes: dict[object, stand_in.Shape | str] = {}
        self._size = size

    def steps(
        self,
        previous: Message | None,
        tail: Sequence[Message],
        context: Context,
        completion_end: int | None,
        stop_ids: Collection[int],
        eos_id: int | None,
    ) -> stand_in.Steps[list[int]]:
        """The steps to a bridge, the proof of its shape included where it is new."""
        key = (context.key, stand_in.shape_key(previous, tail), tuple(stop_ids))
        shape = self._shapes.get(key)
        if shape is None:
            try:
                shape = yield from stand_in.prove_shape(previous, tail, stop_ids)
            except stand_in.NotExtendable as error:
                shape = str(error)
            if len(self._shapes) >= self._size:
                self._shapes.pop(next(iter(self._shapes)))
            self._shapes[key] = shape
        if isinstance(shape, str):
            raise stand_in.NotExtendable(shape)
        return (yield from stand_in.bridge(previous, tail, shape, completion_end, stop_ids, eos_id))

"""What a bridge is asked, and what it answers.

A bridge gives the ids that follow a completion, or declines with a reason. It never touches the ids that
are there: what it answers is only what is appended.

    RendererBridge   the `renderers` family of the model: hand-written, knows reasoning and cut-offs
    StandInBridge    any Hugging Face chat template, or a family's own renderer where its bridge declines,
                     by stand-ins (`rollout.codec.stand_in`)

The server bridge, for models without a local tokenizer, needs the network: `rollout.codec.server` has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from rollout.chat.canonical import value_digest
from rollout.chat.messages import Message


class Previous(msgspec.Struct, frozen=True, kw_only=True):
    """The turn that a bridge starts from."""

    prompt_ids: Sequence[int]
    completion_ids: list[int]
    message: Message | None
    """The assistant's message, whose calls the tail's tool messages answer."""
    history: Sequence[Message] = ()
    """The messages before it: a template may look back at them (`rollout.codec.history`)."""


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What else decides a prompt's tokens."""

    tools: Sequence[Mapping[str, Any]] = ()
    template_args: Mapping[str, Any] = {}
    key: bytes = b""
    """Equal for equal tools and arguments."""


def make_context(tools: Sequence[Mapping[str, Any]], template_args: Mapping[str, Any]) -> Context:
    return Context(tools=tools, template_args=template_args, key=value_digest([list(tools), dict(template_args)]))


def as_shown(tool: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """A tool with the fields that a server adds where it has none, at the end."""
    shown = dict(tool)
    for name, value in fields.items():
        if name not in shown:
            shown[name] = value
        elif isinstance(value, Mapping) and isinstance(shown[name], Mapping):
            shown[name] = as_shown(shown[name], value)
    return shown


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

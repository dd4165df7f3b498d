"""Which family of `renderers` a model's tokenizer and template belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rollout.chat.messages import Message
from rollout.codec.renderer import RendererBridge
from rollout.codec.tokenizer import template_ids
from rollout.codec.types import make_context
from rollout.errors import ConfigError


def choose_family(tokenizer: Any, renderer: str) -> str | None:
    """The `renderers` family to use; None for the template bridge alone.

    `auto` takes a family only where it renders the model's own chat template id for id: a name proves
    nothing, since fine-tunes change their templates. Without a chat template the name must do.
    """
    from renderers.base import MODEL_RENDERER_MAP

    if renderer == "template":
        return None
    known = families()
    if renderer != "auto":
        if renderer not in known:
            raise ConfigError(f"no renderer {renderer!r}; there are: auto, template, server, {', '.join(known)}")
        if not _constructs(tokenizer, renderer):
            raise ConfigError(f"renderer {renderer!r} does not fit this tokenizer: its special tokens are missing")
        return renderer
    named: str | None = MODEL_RENDERER_MAP.get(getattr(tokenizer, "name_or_path", ""))
    if not tokenizer.chat_template:
        return named
    candidates = dict.fromkeys([*([named] if named else []), *known])
    return next((family for family in candidates if _agrees(tokenizer, family)), None)


def families() -> list[str]:
    """The hand-written families of the installed `renderers`."""
    from renderers import base

    base._populate_registry()
    return [name for name in base.RENDERER_REGISTRY if name != "default"]


def _constructs(tokenizer: Any, family: str) -> RendererBridge | None:
    try:
        return RendererBridge(tokenizer, family, "all")
    except Exception:  # each family states its needs in its own way: AssertionError, KeyError, ValueError
        return None


def _agrees(tokenizer: Any, family: str) -> bool:
    """Whether a family renders some conversations exactly as the chat template does."""
    bridge = _constructs(tokenizer, family)
    if bridge is None:
        return False
    for messages, tools in _SAMPLES:
        try:
            ours = bridge.render(messages, make_context(tools, {}))
            theirs = template_ids(tokenizer, messages, tools, {}, add_generation_prompt=True)
        except Exception:  # a template may refuse a sample, which then proves nothing for this family
            return False
        if ours != theirs:
            return False
    return True


_TOOLS: list[Mapping[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        },
    }
]
_CALL = Message.of(
    {"role": "assistant", "tool_calls": [{"id": "call00001", "function": {"name": "add", "arguments": '{"a": 1}'}}]}
)
_SAMPLES: list[tuple[list[Message], list[Mapping[str, Any]]]] = [
    ([Message("user", "Hi.")], []),
    ([Message("system", "Be kind."), Message("user", "1+1?"), Message("assistant", "2"), Message("user", "Why?")], []),
    (
        [
            Message("system", "Be kind."),
            Message("user", "1+1?"),
            _CALL,
            Message("tool", "2", tool_call_id="call00001", name="add"),
        ],
        _TOOLS,
    ),
]

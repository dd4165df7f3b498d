"""The model families that the kit plays: every renderer of the installed release, and every template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from benchmarks.kit.shapes import first_messages
from benchmarks.kit.templates import TEMPLATES, Template, kimi_id
from benchmarks.kit.tokenizers import HarmonyTokenizer, Recorder, small_tokenizer
from rollout.chat.messages import Message, with_tool_names
from rollout.codec.families import families
from rollout.codec.local import Lane
from rollout.codec.tokenizer import template_form, template_ids

#: Families that write the first of several calls, and no other.
ONE_CALL = frozenset({"template:end-differs-when-last"})

Tools = Sequence[Mapping[str, Any]]


class Family(Protocol):
    """A model: its tokenizer, how its server renders, and what it would sample."""

    name: str
    tokenizer: Any
    args: Mapping[str, Any]
    """Arguments of the chat template."""
    moves_text: bool
    """Whether it renders an assistant's text behind the results of its own calls: what was sampled before the calls
    stands elsewhere in a rendering of the whole, which is then no measure."""

    def opening(self) -> list[Message]:
        """What a conversation begins with."""
        ...

    def lane(self) -> Lane:
        """The bridges that are under test."""
        ...

    def render(self, messages: Sequence[Message], tools: Tools, *, add_generation_prompt: bool = True) -> list[int]:
        """What a server makes of messages. Written apart from `rollout.codec.template`, which it checks. May raise."""
        ...

    def sampled(self, history: Sequence[Message], message: Message, tools: Tools) -> list[int]:
        """The ids that the model would sample to say `message`, its stop token included."""
        ...


class RendererFamily:
    """A hand-written family of `renderers`."""

    args: Mapping[str, Any] = {}

    def opening(self) -> list[Message]:
        return first_messages()

    def __init__(self, name: str) -> None:
        from renderers import create_renderer
        from renderers.configs import config_from_name

        self.name = name
        self.moves_text = name == "gemma4"
        config = config_from_name(name)
        if name == "gpt-oss":
            self.tokenizer: Any = HarmonyTokenizer()
        else:
            recorder = Recorder()
            create_renderer(recorder, config)
            # The first stop token serves as eos; families set no order among the others.
            self.tokenizer = small_tokenizer(recorder.asked)
            self.tokenizer.eos_token_id = create_renderer(self.tokenizer, config).get_stop_token_ids()[0]
        assert config is not None
        self._renderer = create_renderer(self.tokenizer, type(config)(thinking_retention="all"))

    def lane(self) -> Lane:
        return Lane(self.tokenizer, self.name, "all", [])

    def render(self, messages: Sequence[Message], tools: Tools, *, add_generation_prompt: bool = True) -> list[int]:
        forms = [template_form(message) for message in with_tool_names(messages)]
        return list(
            self._renderer.render_ids(forms, tools=list(tools) or None, add_generation_prompt=add_generation_prompt)
        )

    def sampled(self, history: Sequence[Message], message: Message, tools: Tools) -> list[int]:
        if self.name.startswith("kimi"):  # whose ids are how a call is named
            message = with_kimi_ids(message)
        prompt = self.render(history, tools)
        rendered = self._rendered([*history, message], tools)
        if rendered.token_ids[: len(prompt)] != prompt and not message.reasoning_content:
            # The prompt opens the reasoning, so the model reasons.
            thoughtful = msgspec.structs.replace(message, reasoning_content="Well.")
            rendered = self._rendered([*history, thoughtful], tools)
        if rendered.token_ids[: len(prompt)] == prompt:
            ids = rendered.token_ids[len(prompt) :]
        else:  # history has the turn's beginning in another way
            ids = [
                token
                for token, index, sampled in zip(
                    rendered.token_ids, rendered.message_indices, rendered.sampled_mask, strict=True
                )
                if index == len(history) and sampled
            ]
        stops = self._renderer.get_stop_token_ids()
        # Some families write a newline behind the stop token, some leave the last turn open.
        end = max((i for i, token in enumerate(ids) if token in stops), default=None)
        return [*ids, stops[0]] if end is None else ids[: end + 1]

    def _rendered(self, messages: Sequence[Message], tools: Tools) -> Any:
        forms = [template_form(message) for message in with_tool_names(messages)]
        return self._renderer.render(forms, tools=list(tools) or None)


def with_kimi_ids(message: Message) -> Message:
    """The message with ids as Kimi's models write them: they name the call's function."""
    calls = tuple(msgspec.structs.replace(call, id=kimi_id(call)) for call in message.tool_calls)
    return msgspec.structs.replace(message, tool_calls=calls)


class TemplateFamily:
    """A chat template."""

    args: Mapping[str, Any] = {}
    moves_text = False

    def opening(self) -> list[Message]:
        return first_messages()

    def __init__(self, template: Template) -> None:
        self.name = f"template:{template.name}"
        self.template = template
        self.tokenizer = small_tokenizer(
            [*template.markers, *template.stops], eos=template.eos or template.stops[0], chat_template=template.jinja
        )
        self._stops = [self.tokenizer.convert_tokens_to_ids(stop) for stop in template.stops]

    def lane(self) -> Lane:
        return Lane(self.tokenizer, None, "all", self._stops)

    def render(self, messages: Sequence[Message], tools: Tools, *, add_generation_prompt: bool = True) -> list[int]:
        return template_ids(self.tokenizer, messages, tools, {}, add_generation_prompt=add_generation_prompt)

    def sampled(self, history: Sequence[Message], message: Message, tools: Tools) -> list[int]:
        stop = self.template.call_stop if message.tool_calls and self.template.call_stop else self.template.stops[0]
        return list(self.tokenizer.encode(self.template.says(message) + stop, add_special_tokens=False))


def all_families() -> dict[str, list[str]]:
    """The names of all families, by kind."""
    return {
        "renderer": families(),
        "template": [f"template:{template.name}" for template in TEMPLATES],
    }


def make_family(name: str) -> Family:
    """Builds a family: takes up to a second."""
    if name.startswith("template:"):
        return TemplateFamily(next(t for t in TEMPLATES if f"template:{t.name}" == name))
    return RendererFamily(name)

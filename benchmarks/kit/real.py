"""A model over its real template and vocabulary: how its server renders, and what it would sample."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from benchmarks.kit.families import Tools, with_kimi_ids
from benchmarks.kit.mistral import Encoder
from benchmarks.kit.models import Model
from benchmarks.kit.shapes import first_messages
from benchmarks.kit.tokenizers import small_tokenizer
from benchmarks.kit.vocabularies import real_tokenizer
from rollout.chat.messages import Message, user
from rollout.codec.families import choose_family
from rollout.codec.local import Lane
from tests.rollout.codec.readers.writers import WRITERS


class RealFamily:
    """A model as the kit plays families."""

    def __init__(self, model: Model) -> None:
        self.name = model.name
        self.model = model
        self.args = model.args
        self.moves_text = model.reader == "gemma4"
        self.tokenizer = make_tokenizer(model)
        self._encoder = Encoder(model) if model.mistral else None
        self._stops = [self.tokenizer.convert_tokens_to_ids(stop) for stop in model.stops]

    def opening(self) -> list[Message]:
        """What a conversation begins with: a system message, where the template takes one."""
        return first_messages() if self.model.system else first_messages()[1:]

    @functools.cached_property
    def family(self) -> str | None:
        """The family of `renderers` that it is found to be of."""
        return choose_family(self.tokenizer, "auto")

    def lane(self) -> Lane:
        return Lane(self.tokenizer, self.family, "all", self._stops)

    def render(self, messages: Sequence[Message], tools: Tools, *, add_generation_prompt: bool = True) -> list[int]:
        """By transformers' own `apply_chat_template`, or Mistral's own encoder."""
        as_objects = not self.model.arguments_as_text and self._encoder is None
        forms = [self._form(message, objects=as_objects) for message in messages]
        if self._encoder is not None:
            return self._encoder(forms, tools)
        ids = self.tokenizer.apply_chat_template(
            forms,
            tools=list(tools) or None,
            add_generation_prompt=add_generation_prompt,
            return_dict=False,
            **self.args,
        )
        return list(ids)

    def sampled(self, history: Sequence[Message], message: Message, tools: Tools) -> list[int]:
        """What its template writes for the message behind the history, or what its format documents."""
        if message.tool_calls and json.loads(message.tool_calls[0].function.arguments).keys() & {
            *self.model.unwritable
        }:
            raise ValueError("the template writes these values in a way that cannot be read")
        if self.model.mistral:  # whose templates write the last user's turn in another way, but all answers alike
            history = [user(".")]
        if self.model.reader == "kimi":
            message = with_kimi_ids(message)
        if self.model.thinks is None:
            message = msgspec.structs.replace(message, reasoning_content=None)
        said = self._said(history, message, tools)
        stop = next((stop for stop in self.model.stops if said.endswith(stop)), None)
        said = said.removesuffix(stop) if stop else said
        ids = self.tokenizer.encode(said, add_special_tokens=False)
        return [*ids, self.tokenizer.convert_tokens_to_ids(stop or self._stop_of(message))]

    def _stop_of(self, message: Message) -> str:
        """What ends a turn whose end the template leaves to the next message."""
        if message.tool_calls and "<|observation|>" in self.model.stops:
            return "<|observation|>"
        return "<|user|>" if "<|user|>" in self.model.stops else self.model.stops[0]

    def _said(self, history: Sequence[Message], message: Message, tools: Tools) -> str:
        said, opened = self._behind_prompt(history, message, tools)
        if message.tool_calls and any(n > said.count(name) for name, n in Counter(names_of(message)).items()):
            said = message.text + self._written(message)
        thoughts = message.reasoning_content
        if self.model.thinks is not None and (opened or thoughts) and (thoughts or "Well.") not in said:
            before, after = self.model.thinks
            said = f"{'' if opened else before}{thoughts or 'Well.'}{after}{said}"
        return said

    def _behind_prompt(self, history: Sequence[Message], message: Message, tools: Tools) -> tuple[str, bool]:
        """What the template writes behind the prompt, up to the first stop; and whether the prompt opens reasoning."""
        prompt = self._text(history, tools, add_generation_prompt=True)
        whole = self._text([*history, message], tools, add_generation_prompt=False)
        same = next((at for at, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), None)
        same = min(len(prompt), len(whole)) if same is None else same
        if prompt.rfind("<", 0, same) > prompt.rfind(">", 0, same):  # two markers that begin alike
            same = prompt.rfind("<", 0, same)
        said = whole[same:].removeprefix("<|turn>model\n")  # which Gemma 4 does not prompt for behind results
        opened = self.model.thinks is not None and prompt.rstrip().endswith(self.model.thinks[0].rstrip())
        if same == len(prompt):  # the template writes the message's reasoning, or closes it at once
            opened = False
        elif opened and "</think>" in said:
            said = said.partition("</think>")[2].lstrip("\n")
        ends = [said.index(stop) + len(stop) for stop in self.model.stops if stop in said]
        return said[: min(ends)] if ends else said, opened

    def _written(self, message: Message) -> str:
        """Calls as the format documents them."""
        if self.model.writes is None:
            raise ValueError("the template does not write these calls")
        write = WRITERS[self.model.writes]
        return "\n".join(write(call.name, call.parsed_arguments()) for call in message.tool_calls)

    def _text(self, messages: Sequence[Message], tools: Tools, *, add_generation_prompt: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            [self._form(message, objects=not self.model.arguments_as_text) for message in messages],
            tools=list(tools) or None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **self.args,
        )
        return text

    def _form(self, message: Message, *, objects: bool) -> dict[str, Any]:
        """A message as servers hand it to templates. Written apart from `rollout.codec`, which it checks."""
        knows = "'developer'" in self.model.jinja or '"developer"' in self.model.jinja
        role = "system" if message.role == "developer" and not knows else message.role
        form: dict[str, Any] = {"role": role, "content": message.text}
        if self.model.takes_parts and message.role != "tool":
            form["content"] = [{"type": "text", "text": message.text}]
        if message.reasoning_content:
            form["reasoning_content"] = message.reasoning_content
        if message.tool_calls:
            form["tool_calls"] = [msgspec.to_builtins(call) for call in message.tool_calls]
        for call in form.get("tool_calls", ()) if objects else ():
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        return form | {key: value for key in ("tool_call_id", "name") if (value := getattr(message, key))}


def names_of(message: Message) -> list[str]:
    """The names of the functions that a message calls."""
    return [call.name for call in message.tool_calls]


def make_tokenizer(model: Model) -> Any:
    """The model's tokenizer. Models with the same vocabulary and markers share one, and are played in turn."""
    if model.vocabulary == "small":
        markers = [*model.markers, *model.stops, *([model.bos] if model.bos else [])]
        tokenizer = small_tokenizer(markers, eos=model.stops[0])
        if model.bos:
            tokenizer.bos_token = model.bos
    else:
        tokenizer = _shared(
            model.vocabulary,
            (*model.markers, *model.stops),
            model.stops[0],
            model.bos,
            tuple(model.placed.items()),
            model.rstrips,
        )
    tokenizer.chat_template = model.jinja
    tokenizer.name_or_path = model.name.partition(",")[0]
    return tokenizer


@functools.lru_cache(maxsize=1)
def _shared(
    vocabulary: str,
    markers: tuple[str, ...],
    eos: str,
    bos: str | None,
    placed: tuple[tuple[str, int], ...],
    rstrips: bool,
) -> Any:
    return real_tokenizer(vocabulary, markers, eos=eos, bos=bos, placed=dict(placed), rstrips=rstrips)

"""Which reader a model needs: what it is tells, not who renders its prompts.

1. Its own chat template renders a call, and the reader that reads that call back is the one.
2. The response format that the tokenizer documents for transformers.
3. Where the template renders no call (it drops it, or refuses it), its text has the syntax that it asks for.
4. The tokens that the model has: formats have markers of their own.
5. Its name, its `model_type`, or the family of `renderers` that it was found to be of.

Where none of these tells, nobody knows how the model writes calls, and `None` says so.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from rollout.chat.messages import Function, Message, ToolCall, user
from rollout.codec.readers import response_template
from rollout.codec.readers.base import Format, Reader
from rollout.codec.readers.catalogue import FORMATS, PLAIN, Several, format_by_name
from rollout.codec.readers.pieces import Sampled
from rollout.codec.tokenizer import template_text
from rollout.errors import ConfigError

#: What a template is asked to render: values that no reader takes for another's syntax.
_ARGUMENTS = {"city": "Reykjavik", "days": 3}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather_of",
            "description": "The weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]
ASKED = [user("How will it be?")]
SAID = Message(
    "assistant", tool_calls=(ToolCall(id="call00001", function=Function("weather_of", json.dumps(_ARGUMENTS))),)
)

_END = 80
_TOKEN_AT_END = re.compile(r"\s*<[^<>]*>\s*\Z")


def reader_names() -> list[str]:
    """What `--reader` takes."""
    return ["auto", *sorted(FORMATS), PLAIN.name]


def choose_reader(tokenizer: Any, name: str = "auto", *, family: str | None = None) -> Reader | None:
    """The reader that `name` names, or that fits what the model is; None where none does. Raises ConfigError.

    `family` is the family of `renderers` that the model was found to be of.
    """
    if name != "auto":
        return named_reader(name)
    template = str(tokenizer.chat_template or "")
    names = [family, str(getattr(tokenizer, "name_or_path", "") or ""), _model_type(tokenizer)]
    told = _by_names(names)
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if template:
        likely = [*told, *(each for each in FORMATS.values() if each.is_told_by(tokens) or each.is_told_by(template))]
        for prompt, whole in _renderings(tokenizer):
            if (found := reader_of(prompt, whole, likely)) is not None:
                return found
        if (documented := getattr(tokenizer, "response_template", None)) and response_template.is_known():
            return response_template.ResponseTemplate(documented)
        if signed := [each for each in FORMATS.values() if each.is_told_by(template)]:
            return signed[0]
    if family is not None and told:
        return told[0]
    return _by_tokens(tokens, told)


def reader_by_name(*names: str | None) -> Reader | None:
    """The reader that a model's names tell of; None where they tell of none."""
    return next(iter(_by_names(names)), None)


def named_reader(name: str) -> Reader:
    """The reader of that name. Raises ConfigError."""
    if name == PLAIN.name:
        return PLAIN
    if name not in FORMATS:
        raise ConfigError(f"no reader {name!r}; there are: {', '.join(reader_names())}")
    return FORMATS[name]


def reader_of(prompt: str, whole: str, told: Sequence[Format] = ()) -> Format | None:
    """The reader that reads the call of `SAID` back, as a template has written it behind `ASKED`.

    `prompt` is `ASKED` with the generation prompt, `whole` is both. `told` are tried first.
    """
    start = next((at for at, (one, other) in enumerate(zip(prompt, whole, strict=False)) if one != other), None)
    start = min(len(prompt), len(whole)) if start is None else start
    ends = [whole[start:]]
    while (shorter := _TOKEN_AT_END.sub("", ends[-1])) != ends[-1]:
        ends.append(shorter)
    formats = list(dict.fromkeys([*told, *FORMATS.values()]))
    before = list(dict.fromkeys([prompt[:start][-_END:], prompt[-_END:]]))
    # First one that leaves nothing over: Llama's reader would find Hermes' JSON between its tags.
    for whole_text in (True, False):
        for each, text, prompt_end in product(formats, ends, before):
            if not each.is_form_of(text):
                continue
            read = each.read(Sampled(text=text, prompt_end=prompt_end, tools=TOOLS))
            if read.text.strip() and (whole_text or not any(opener in text for opener in each.openers)):
                continue
            if [(call.name, call.parsed_arguments()) for call in read.tool_calls] == [("weather_of", _ARGUMENTS)]:
                return each
    return None


def _by_names(names: Iterable[str | None]) -> list[Format]:
    found = (format_by_name(Path(name).name or name) for name in names if name)
    return list(dict.fromkeys(each for each in found if each is not None))


def _by_tokens(tokens: Collection[str], told: Sequence[Format]) -> Format | None:
    """The reader whose markers the model has; of several the one that its name tells of, or all of them.

    Formats that begin alike share their markers (Hermes' and Qwen3.5's `<tool_call>`), and some have none (xLAM's).
    """
    signed = [each for each in FORMATS.values() if each.is_told_by(tokens)]
    # Hermes and GLM begin alike: of these the first, which has more signs, is the one.
    signed = [
        each for at, each in enumerate(signed) if not any({*each.openers} <= {*one.openers} for one in signed[:at])
    ]
    openers = {opener for each in signed for opener in each.openers}
    if told and (told[0] in signed or not signed or {*told[0].openers} <= openers):
        return told[0]
    if not signed:
        return None
    return signed[0] if len(signed) == 1 else Several(signed)


def _renderings(tokenizer: Any) -> Iterator[tuple[str, str]]:
    """How the template writes the question and the call: with arguments as an object, and as text."""
    for as_text in (False, True):
        with contextlib.suppress(Exception):  # templates refuse in ways of their own
            yield (
                _text(tokenizer, ASKED, add_generation_prompt=True),
                _text(tokenizer, [*ASKED, SAID], add_generation_prompt=False, as_text=as_text),
            )


def _text(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool, as_text: bool = False) -> str:
    if not as_text:
        return template_text(tokenizer, messages, TOOLS, {}, add_generation_prompt=add_generation_prompt)
    forms = [message.as_openai() for message in messages]
    text: str = tokenizer.apply_chat_template(
        forms, tools=TOOLS, add_generation_prompt=add_generation_prompt, tokenize=False
    )
    return text


def _model_type(tokenizer: Any) -> str:
    """What the model's own configuration says that it is; "" where there is none."""
    path = Path(str(getattr(tokenizer, "name_or_path", "") or "")) / "config.json"
    try:
        found = json.loads(path.read_bytes()).get("model_type", "")
    except (OSError, ValueError, AttributeError):
        return ""
    return found if isinstance(found, str) else ""

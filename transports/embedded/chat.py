"""Text and ids: the folder's tokenizer and chat template, without transformers (which takes seconds to import)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer


class ChatError(ValueError):
    """Messages that the template cannot render."""


class ChatFormat:
    """Encodes, decodes and renders conversations as vLLM does with the same folder."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        self._template = _compiled(config["chat_template"])

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Ids of the text; special tokens in it become their ids."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of the ids; bytes that are no UTF-8 become the replacement character."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    def token(self, token_id: int) -> str:
        """One id's own text."""
        return self.decode([token_id], skip_special=False)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        template_args: Mapping[str, Any],
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The prompt's ids. Raises ChatError where the template fails on these messages."""
        try:
            prepared = [_for_template(message) for message in messages]
            text = self._template.render(
                messages=prepared,
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
                **template_args,
            )
        except ChatError:
            raise
        except Exception as error:  # a template may raise anything on what it was not written for
            raise ChatError(f"the chat template cannot render these messages: {error}") from error
        return self.encode(text)


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    """Compiled once: it takes 25 ms, and one program may serve the same folder many times."""
    # The settings under which transformers runs chat templates.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    return environment.from_string(template)


def _for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as vLLM hands it to a template: text parts joined, tool-call arguments as objects."""
    out = {key: value for key, value in message.items() if value is not None}
    content = out.get("content")
    if isinstance(content, list):
        out["content"] = "\n".join(map(_text_of, content))
    out.setdefault("content", "")
    if calls := out.get("tool_calls"):
        if not isinstance(calls, list):
            raise ChatError(f"tool_calls must be a list, not {calls!r:.80}")
        out["tool_calls"] = [_call_for_template(call) for call in calls]
    return out


def _text_of(part: Any) -> str:
    """A content part's text. Raises ChatError for one that is something else."""
    if not isinstance(part, Mapping):
        return str(part)
    if (kind := part.get("type", "text")) not in ("text", "input_text", "output_text", "refusal"):
        raise ChatError(f"the embedded model reads text only, not a part of type {kind!r}")
    return str(part.get("text") or "")


def _call_for_template(call: Any) -> Any:
    if not isinstance(call, Mapping) or not isinstance(function := call.get("function"), Mapping):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments else {}
        except ValueError:
            return call
    return {**call, "function": {**function, "arguments": arguments}}


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise ChatError(message)

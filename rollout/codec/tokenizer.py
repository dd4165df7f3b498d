"""Tokenizers: loaded once per process, off the event loop, and used by one thread at a time.

A Hugging Face tokenizer that two threads use at once raises "Already borrowed", so each thread that
needs one takes a copy of its own (a lane, see `rollout.codec.local`).
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from rollout.chat.messages import Message, with_tool_names
from rollout.codec.source import Source, template_source
from rollout.errors import ConfigError, MessageError
from rollout.memo import Memo

_LOCK = threading.Lock()
#: A trainer may name another checkpoint's folder with every update.
_LOADED = Memo[str, Any](8)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a folder or a hub name. Blocks; loads once per process however many ask at once.

    Raises ConfigError where there is none, naming what was looked for.
    """
    with _LOCK:
        if name not in _LOADED:
            _LOADED[name] = _load(name)
        return _LOADED[name]


def copy_tokenizer(tokenizer: Any) -> Any:
    """An independent copy, for another thread."""
    with _LOCK:
        return copy.deepcopy(tokenizer)


def _load(name: str) -> Any:
    # It would say that there is no torch, which nobody here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # Imported here: it takes seconds, and `rollout --help` needs none of it.
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    folder = model_folder(name) or Path(name).expanduser()
    if folder.exists() and not any((folder / file).exists() for file in ("tokenizer.json", "tokenizer_config.json")):
        raise ConfigError(f"no tokenizer in folder {name!r}: it has no tokenizer.json; name another by --tokenizer")
    try:
        return AutoTokenizer.from_pretrained(str(folder) if folder.exists() else name)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and hub errors alike
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"tokenizer {name!r} was not found ({reason}); name a folder or a hub name by --tokenizer"
        ) from error


def configured_stop_ids(tokenizer: Any, name: str) -> list[int]:
    """The ids that end a turn by the model's own files: generation_config.json, config.json, the tokenizer's end token.

    The files lie where the tokenizer came from: a folder, or the hub (its cache, where that is offline).
    """
    stops = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    for file in ("generation_config.json", "config.json"):
        found = _model_file(name, file)
        for part in (found, found.get("text_config")):  # models that see have their text's settings apart
            eos = part.get("eos_token_id") if isinstance(part, dict) else None
            stops += [token for token in (eos if isinstance(eos, list) else [eos]) if _is_id(token)]
    return list(dict.fromkeys(stops))


def _is_id(token: Any) -> bool:
    """Whether it is a token's id: some files have -1 for none, and a server refuses each request that names it."""
    return isinstance(token, int) and not isinstance(token, bool) and token >= 0


def model_folder(name: str) -> Path | None:
    """The folder that a name is, or the snapshot in it where that is a model's folder of the hub's cache."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    snapshots, main = folder / "snapshots", folder / "refs" / "main"
    if not snapshots.is_dir():
        return folder
    if main.is_file() and (snapshots / main.read_text().strip()).is_dir():
        return snapshots / main.read_text().strip()
    return max((each for each in snapshots.iterdir() if each.is_dir()), key=lambda p: p.stat().st_mtime, default=folder)


def _model_file(name: str, file: str) -> dict[str, Any]:
    """One of a model's JSON files; empty where it has none that can be read."""
    folder = model_folder(name)
    path: str | Path | None = folder / file if folder is not None else None
    if folder is None:
        from transformers.utils.hub import cached_file

        with contextlib.suppress(Exception):  # a hub that cannot be reached, or has no such file
            path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    try:
        found = msgspec.json.decode(Path(path).read_bytes()) if path is not None else {}
    except (OSError, msgspec.DecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def template_ids(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    template_args: Mapping[str, Any],
    *,
    add_generation_prompt: bool,
) -> list[int]:
    """The ids of a conversation by the tokenizer's own chat template."""
    text = template_text(tokenizer, messages, tools, template_args, add_generation_prompt=add_generation_prompt)
    return list(tokenizer.encode(text, add_special_tokens=False))


def template_text(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    template_args: Mapping[str, Any],
    *,
    add_generation_prompt: bool,
) -> str:
    """The text of a conversation by the tokenizer's own chat template.

    Call arguments are objects, as vLLM hands them over too; a template that refuses those gets them as text. As there,
    a tool's message has a name where it came with one; where the template refuses it, it gets its function's.
    """
    source = template_source(tokenizer, tools=bool(tools))

    def render(messages: Sequence[Message], *, arguments_as_text: bool) -> str:
        text: str = tokenizer.apply_chat_template(
            [template_form(message, source, arguments_as_text=arguments_as_text) for message in messages],
            tools=list(tools) or None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **template_args,
        )
        return text

    try:
        return render(messages, arguments_as_text=False)
    except Exception:  # DeepSeek's join arguments to text: TypeError
        named = with_tool_names(messages)
        calls = any(message.tool_calls for message in messages)
        ways = [(messages, True)] * calls
        if any(new is not old for new, old in zip(named, messages, strict=True)):
            ways += [(named, False), (named, True)]
        for given, as_text in ways:
            with contextlib.suppress(Exception):
                return render(given, arguments_as_text=as_text)
        raise


def template_form(message: Message, source: Source | None = None, *, arguments_as_text: bool = False) -> dict[str, Any]:
    """A message as chat templates want it: OpenAI's form, tool-call arguments as objects.

    Many templates iterate over the arguments; vLLM parses them before it renders, too. Content is what vLLM makes of
    it: parts where the template has a loop over them (tool results excepted), else text, the parts' lines joined.
    """
    form = message.as_openai()
    form["content"] = _content(message, takes_parts=source is not None and source.takes_parts)
    if message.role == "developer" and source is not None and not source.knows_developer:
        form["role"] = "system"
    for call, read in zip(() if arguments_as_text else form.get("tool_calls", ()), message.tool_calls, strict=False):
        # What is not a JSON object stays the text that it is.
        with contextlib.suppress(MessageError):
            call["function"]["arguments"] = read.parsed_arguments()
    return form


def _content(message: Message, *, takes_parts: bool) -> str | list[dict[str, Any]]:
    if message.is_multimodal:
        # As vLLM and SGLang hand an image to the template: it says that there is one, and not which.
        parts: Any = message.content
        return [{"type": "image"} if part.get("type") == "image_url" else part for part in parts]
    if not takes_parts or message.role == "tool":
        return message.text
    texts = [part.get("text", "") for part in message.content] if isinstance(message.content, tuple) else [message.text]
    return [{"type": "text", "text": text} for text in texts]

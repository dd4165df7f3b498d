"""The chat format is one, whoever writes it: the template, the renderer, the training dialogues."""

from __future__ import annotations

import random
from typing import Any

import pytest
from renderers import create_renderer
from renderers.configs import Qwen3RendererConfig
from transformers import AutoTokenizer

from benchmarks.embedded_train import dialogues
from envs.calculator import Calculator
from transports.embedded import MODEL_DIR
from transports.embedded.chat import ChatError, ChatFormat

CALL = {"id": "call_0", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Wörter, 日本語 😀\n\n  and  123"},
    {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "3", "tool_call_id": "call_0"},
    {"role": "tool", "content": "4", "tool_call_id": "call_0"},
    {"role": "assistant", "content": "3.", "reasoning_content": "easy"},
    {"role": "user", "content": "and then?"},
]


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    """The server's own reading of the folder."""
    return ChatFormat(MODEL_DIR)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """transformers' reading of the folder."""
    return AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)


@pytest.mark.parametrize("length", [2, 5, 7])
@pytest.mark.parametrize("tools", [[], list(Calculator.tools)])
def test_the_renderer_writes_what_the_template_writes(
    chat: ChatFormat, tokenizer: Any, length: int, tools: list[Any]
) -> None:
    """The server's template, transformers and renderers' Qwen3 give the same ids."""
    messages = CONVERSATION[:length]
    renderer = create_renderer(tokenizer, Qwen3RendererConfig())
    ids = chat.render(messages, tools, {})
    assert ids == renderer.render_ids(messages, tools=tools or None, add_generation_prompt=True)
    text = tokenizer.apply_chat_template(messages, tools=tools or None, add_generation_prompt=True, tokenize=False)
    assert chat.decode(ids, skip_special=False) == text


@pytest.mark.parametrize("game", [dialogues.guess_number, dialogues.calculator, dialogues.echo])
def test_training_dialogues_are_what_token_in_sends(tokenizer: Any, chat: ChatFormat, game: Any) -> None:
    """The ids that the model is trained on are, turn by turn, prompt, completion and the renderer's bridge."""
    dialogue = game(random.Random(8))
    renderer = create_renderer(tokenizer, Qwen3RendererConfig(thinking_retention="all"))
    opening = [message.as_openai() for message in dialogue.opening]
    ids = chat.render(opening, dialogue.tools, {})
    segments = list(dialogue.segments("kept"))
    assert ids == chat.encode(segments[0].text)
    for index, replies in enumerate(dialogue.replies[:-1]):
        completion = chat.encode(segments[1 + 2 * index].text)
        new = [message.as_openai() for message in replies]
        bridged = renderer.bridge_to_next_turn(ids, completion, new, tools=list(dialogue.tools) or None)
        assert bridged is not None
        assert bridged.token_ids == [*ids, *completion, *chat.encode(segments[2 + 2 * index].text)]
        ids = bridged.token_ids


def test_training_dialogues_without_thinking_are_the_templates(chat: ChatFormat) -> None:
    """What message-in would send for an earlier turn is what `stripped` samples hold."""
    dialogue = dialogues.guess_number(random.Random(8))
    messages = [message.as_openai() for message in dialogue.opening]
    for answer, replies in zip(dialogue.answers[:2], dialogue.replies[:2], strict=True):
        messages += [answer.message().as_openai(), *(message.as_openai() for message in replies)]
    text = "".join(segment.text for segment in list(dialogue.segments("stripped", last=2))[:-1])
    assert chat.decode(chat.render(messages, [], {}), skip_special=False) == text


def test_every_text_survives_encoding(chat: ChatFormat) -> None:
    """Bytes of any text come back as they were."""
    for text in ("", " ", "\n\n \n", "naïve ☃ 𝔘𝔫𝔦", "<think>\n</think>", "".join(map(chr, range(1, 400)))):
        assert chat.decode(chat.encode(text), skip_special=False) == text


def test_messages_that_the_template_cannot_render_are_named(chat: ChatFormat) -> None:
    """A template's failure is a ChatError, not a crash."""
    with pytest.raises(ChatError, match="template"):
        chat.render([], [], {})
    for calls in (1.5, True, "x", {"a": 1}):
        with pytest.raises(ChatError, match="tool_calls must be a list"):
            chat.render([{"role": "assistant", "tool_calls": calls}], [], {})

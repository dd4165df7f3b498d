"""Whitespace at the ends of an answer: code's indentation, a patch's last newline."""

from __future__ import annotations

import pytest

from rollout.chat.messages import user
from rollout.codec.local import load_codec
from rollout.codec.tokenizer import load_tokenizer
from tests.cases.token_kit import start, turn
from transports.embedded import MODEL_DIR


@pytest.mark.parametrize("renderer", ["template", "qwen3"])
@pytest.mark.parametrize("text", ["    return x\n", "\n", " x", "x\n\n\n"])
def test_an_answers_whitespace_reaches_the_environment(renderer: str, text: str) -> None:
    """What was sampled is what the environment sees, and the next turn extends it."""
    codec = load_codec(str(MODEL_DIR), renderer=renderer)
    session = start(load_tokenizer(str(MODEL_DIR)), [(f"{text}<|im_end|>", "stop"), ("ok<|im_end|>", "stop")], codec)
    messages = [user("Complete the line.")]
    message = turn(session, messages)
    assert message.content == text
    turn(session, [*messages, message, user("Go on.")])
    assert session.turns[1].fallback is None

"""What a turn is held to, by what its prompt says."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.live.steered import Steering, form
from transports.embedded import MODEL_DIR

STEERING = Steering(MODEL_DIR)
TASK = {"role": "user", "content": "script=bash,think:say; Say hello."}
ANSWER = {"role": "assistant", "content": None}


def regex_of(path: str, body: dict[str, Any]) -> str | None:
    held = STEERING.steer(path, body)
    found: dict[str, Any] = held.get("sampling_params", held)
    regex: str | None = found.get("structured_outputs", {}).get("regex")
    return regex


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("say", "some words"),
        ("think:say", "<think>\nhm\n</think>\n\nwords"),
        ("bash", '<tool_call>\n{"name":"bash", "arguments": {"command": "echo a b" }}\n</tool_call>'),
    ],
)
def test_a_form_is_what_the_readers_of_calls_know(step: str, said: str) -> None:
    """Words, a thought before them, a call in the model's own format, with spaces or without."""
    assert re.fullmatch(form(step), said)
    assert not re.fullmatch(form(step), said + "!")


def test_the_turns_that_were_played_tell_the_step() -> None:
    """Messages by their roles; what is after the script's end is words."""
    results = {"role": "tool", "content": "a b"}
    asked = [[TASK], [TASK, ANSWER, results], [TASK, ANSWER, results, ANSWER, {"role": "user", "content": "on"}]]
    found = [regex_of("/v1/chat/completions", {"messages": messages}) for messages in asked]
    assert found == [form("bash"), form("think:say"), form("say")]


@pytest.mark.parametrize("path", ["/v1/completions", "/inference/v1/generate"])
def test_ids_tell_it_as_messages_do(path: str) -> None:
    """On each route of ids, where that route takes it."""
    turn = "<|im_start|>assistant\n"
    text = f"<|im_start|>user\n{TASK['content']}<|im_end|>\n{turn}x<|im_end|>\n<|im_start|>user\ny<|im_end|>\n{turn}"
    ids = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json")).encode(text).ids
    body = {"prompt": ids} if path == "/v1/completions" else {"token_ids": ids, "sampling_params": {}}
    assert regex_of(path, body) == form("think:say")


def test_what_has_no_script_passes_as_it_is() -> None:
    """A title, a probe."""
    body = {"messages": [{"role": "user", "content": "Hi."}]}
    assert STEERING.steer("/v1/chat/completions", body) is body

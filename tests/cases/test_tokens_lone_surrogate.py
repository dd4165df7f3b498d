"""Text that cannot be encoded, from an environment or sampled in a call, costs nothing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks.kit.tokenizers import small_tokenizer
from rollout.chat.messages import user
from tests.cases.commands import env_file, kinds, ran
from tests.cases.token_kit import CHATML, CHATML_TEMPLATE, start, turn

ENV = """
class E(Env):
    def tasks(self, n, seed):
        return ({"number": i} for i in range(n))

    def reset(self, task):
        self.turns = 0
        return [user("Guess my number from 1 to 64. 7 guesses left.")]

    def step(self, message):
        self.turns += 1
        return Step(messages=[user("caf\\udce9.txt")], done=self.turns == 2, reward=1.0)
"""


@pytest.mark.slow
def test_half_a_character_from_an_environment_costs_nothing(tmp_path: Path) -> None:
    """The rollout goes on, and is kept."""
    done = ran("run", env_file(tmp_path, ENV), "-n", "1", "--json", "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert kinds(tmp_path / "run") == [None]


def test_half_an_emoji_in_a_sampled_call_can_be_written() -> None:
    """A lone surrogate that the policy spelled in JSON is U+FFFD in what the environment gets."""
    tokenizer = small_tokenizer(CHATML, eos="<|im_end|>", chat_template=CHATML_TEMPLATE)
    sampled = '<tool_call>\n{"name": "f", "arguments": {"a": "\\ud83d"}}\n</tool_call><|im_end|>'
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    message = turn(start(tokenizer, [(sampled, "stop")]), [user("hi")], tools=tools)
    msgspec.json.encode(message)
    assert [call.parsed_arguments() for call in message.tool_calls] == [{"a": "\ufffd"}]

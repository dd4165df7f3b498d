"""An environment that only answers: conversations of a known length, for benchmarks and live tests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from rollout.chat.messages import Message, user
from rollout.env import Env, MessageLike, Step, Task

_TEXT = (
    "the quick brown fox jumps over the lazy dog while seven small birds sing in an old tree near the river "
    "and every morning a farmer walks along the narrow road to sell fresh bread at the market"
)
_WORDS = _TEXT.split()


def filler(chars: int, start: int = 0) -> str:
    """Exactly `chars` characters of plain words, the same ones for the same `start`."""
    return _filler(chars, start % len(_WORDS))


@lru_cache(1_024)
def _filler(chars: int, start: int) -> str:
    words: list[str] = []
    length = 0
    while length <= chars:  # the joined text has one space less than `length` counts
        word = _WORDS[(start + len(words)) % len(_WORDS)]
        words.append(word)
        length += len(word) + 1
    # A full stop where the cut would leave a space: templates and tokenizers treat trailing space apart.
    text = " ".join(words)[:chars]
    return text[:-1] + "." if text.endswith(" ") else text


class Echo(Env):
    """Answer "turn k: " and filler, whatever the model says; reward 1 when all turns were played."""

    blocks = False

    def __init__(self, turns: int = 8, chars: int = 400) -> None:
        if turns < 1 or chars < 0:
            raise ValueError(f"echo needs turns >= 1 and chars >= 0, not turns={turns} chars={chars}")
        self.turns = turns
        self.chars = chars
        self._turn = 0
        self._start = 0

    def reset(self, task: Task) -> Sequence[MessageLike]:
        """Opens with turn 1; a task's `index` chooses where the filler begins."""
        self._turn = 1
        index = task.get("index", 0)
        self._start = index if isinstance(index, int) else 0
        return [self._message()]

    def step(self, message: Message) -> Step:
        """Goes to the next turn, or ends after the last."""
        metrics = {"turns": float(self._turn)}
        if self._turn == self.turns:
            return Step(done=True, reward=1.0, metrics=metrics)
        self._turn += 1
        return Step(messages=[self._message()], metrics=metrics)

    def _message(self) -> Message:
        return user(f"turn {self._turn}: {filler(self.chars, self._start + 7 * self._turn)}")

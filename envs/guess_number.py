"""Guess a hidden number from "higher" and "lower": many short turns of user feedback."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence

from rollout.chat.messages import Message, user
from rollout.env import Env, MessageLike, Step, Task

_INTEGER = re.compile(r"-?\d+")


class GuessNumber(Env):
    """Find a hidden number from "higher" and "lower" before the guesses run out; reward 1 when found."""

    blocks = False

    def __init__(self, low: int = 1, high: int = 64, guesses: int = 7) -> None:
        if low > high or guesses < 1:
            raise ValueError(f"guess_number needs low <= high and guesses >= 1, not {low}..{high} in {guesses}")
        self.low = low
        self.high = high
        self.guesses = guesses
        self._target = low
        self._used = 0
        self._malformed = 0

    def tasks(self, n: int, seed: int) -> Iterable[Task]:
        """`n` hidden numbers, uniform over the range."""
        numbers = random.Random(seed)
        return ({"target": numbers.randint(self.low, self.high)} for _ in range(n))

    def reset(self, task: Task) -> Sequence[MessageLike]:
        """States the range and how many guesses there are."""
        target = task.get("target")
        if not isinstance(target, int) or not self.low <= target <= self.high:
            raise ValueError(f"a guess_number task needs a target from {self.low} to {self.high}, not {target!r}")
        self._target, self._used, self._malformed = target, 0, 0
        return [user(f"Guess my number from {self.low} to {self.high}. {self._left()}")]

    def step(self, message: Message) -> Step:
        """Compares the last integer of the answer; an answer without one in range costs a guess too."""
        self._used += 1
        guess = self._guess(message.text)
        if guess is None:
            self._malformed += 1
        if guess == self._target:
            return Step(done=True, reward=1.0, metrics=self._metrics(found=True))
        if self._used == self.guesses:
            return Step(done=True, metrics=self._metrics(found=False))
        if guess is None:
            hint = f"Please answer with a number from {self.low} to {self.high}."
        else:
            hint = f"{'Higher' if guess < self._target else 'Lower'} than {guess}."
        return Step(messages=[user(f"{hint} {self._left()}")], metrics=self._metrics(found=False))

    def _guess(self, text: str) -> int | None:
        digits = _INTEGER.findall(text)
        # Thousands of digits are no guess, and Python refuses to convert them.
        if not digits or len(digits[-1]) > 20:
            return None
        guess = int(digits[-1])
        return guess if self.low <= guess <= self.high else None

    def _left(self) -> str:
        left = self.guesses - self._used
        return f"{left} guess{'' if left == 1 else 'es'} left."

    def _metrics(self, *, found: bool) -> dict[str, float]:
        return {"guesses": float(self._used), "malformed": float(self._malformed), "found": float(found)}

"""Conversations with images: one to begin with, others later, alone or between texts, and turns without any."""

from __future__ import annotations

import base64
import random
import zlib
from collections.abc import Sequence
from typing import Any

from rollout.chat.messages import Message
from rollout.env import Env, Step, Task


def picture(color: tuple[int, int, int], side: int = 40) -> str:
    """A square of one colour, as a `data:` address."""
    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    pixels = zlib.compress((b"\0" + bytes(color) * side) * side)
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in chunks
    )
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def shown(color: tuple[int, int, int]) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": picture(color)}}


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


class Pictures(Env):
    """Eight turns: every third shows two pictures side by side, every second one, the others none."""

    blocks = False

    def __init__(self, turns: int = 8, first: bool = True) -> None:
        self.turns = turns
        self.first = first
        self._turn = 0
        self._chance = random.Random(0)

    def reset(self, task: Task) -> Sequence[Message]:
        """A task's `index` chooses the colours."""
        self._chance = random.Random(str(task.get("index", 0)))
        self._turn = 1
        return [self._message(1 if self.first else 0)]

    def step(self, message: Message) -> Step:
        """Goes to the next turn, or ends after the last."""
        if self._turn == self.turns:
            return Step(done=True, reward=1.0)
        self._turn += 1
        return Step(messages=[self._message(2 if self._turn % 3 == 0 else 1 if self._turn % 2 == 0 else 0)])

    def _message(self, pictures: int) -> Message:
        if not pictures:
            return Message("user", f"turn {self._turn}: and now?")
        shade = self._chance.randrange
        parts = [shown((shade(256), shade(256), shade(256))) for _ in range(pictures)]
        return Message("user", (said(f"turn {self._turn}: look at "), *parts, said(" and say what it is.")))

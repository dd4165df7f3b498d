"""What was found out once, kept within bounds: a process that plays for weeks meets ever new keys."""

from __future__ import annotations

import contextlib
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(dict[K, V]):
    """A dict of the last `size` keys that were set: the oldest goes when another comes. Set by `memo[key] = value`.

    Several threads may share one: then it may hold a key more for each of them, and `get` reads it.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def __setitem__(self, key: K, value: V) -> None:
        while self and len(self) >= self.size and key not in self:
            with contextlib.suppress(RuntimeError, StopIteration):  # another thread set or took one meanwhile
                self.pop(next(iter(self)), None)
        super().__setitem__(key, value)

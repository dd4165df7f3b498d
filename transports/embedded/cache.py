"""Keys and values: what a running sequence holds, and the blocks that later prompts reuse."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Tokens of a block: what is reused is a whole number of blocks, as in vLLM.
BLOCK_TOKENS = 16

Float32 = NDArray[np.float32]


class KeyValues:
    """The keys and values of one sequence, growing by doubling."""

    __slots__ = ("data", "length")

    def __init__(self, layers: int, kv_heads: int, head_dim: int, capacity: int = 256) -> None:
        self.data: Float32 = np.empty((2, layers, kv_heads, capacity, head_dim), np.float32)
        """(key or value, layer, kv head, position, dimension); only the first `length` positions count."""
        self.length = 0

    def reserve(self, length: int) -> None:
        """Makes room for `length` positions."""
        have = self.data.shape[3]
        if length <= have:
            return
        bigger = np.empty((*self.data.shape[:3], max(length, 2 * have), self.data.shape[4]), np.float32)
        bigger[:, :, :, : self.length] = self.data[:, :, :, : self.length]
        self.data = bigger


class _Block:
    __slots__ = ("data", "serial")

    def __init__(self, data: Float32, serial: int) -> None:
        self.data = data
        self.serial = serial


class PrefixCache:
    """Blocks of keys and values by the ids that lead to them: a trie, kept in a dict.

    A block's key is its parent's serial number and its own ids, so that equal keys mean equal
    prefixes and no hash can be mistaken for another's. Least recently used blocks go first. A
    `salt` starts a trie of its own. Used by the engine's thread alone.
    """

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_blocks = capacity_tokens // BLOCK_TOKENS
        self.queries = 0
        """Prompt tokens that were looked up."""
        self.hits = 0
        """Of these, tokens that were found."""
        self._blocks: OrderedDict[tuple[int, bytes], _Block] = OrderedDict()
        self._roots: dict[str | None, int] = {}
        self._next_serial = 0

    def __repr__(self) -> str:
        return f"<PrefixCache {len(self._blocks)}/{self.capacity_blocks} blocks, {self.hits}/{self.queries} tokens hit>"

    @property
    def usage(self) -> float:
        """Share of the capacity in use, 0 to 1."""
        return len(self._blocks) / self.capacity_blocks if self.capacity_blocks else 0.0

    def clear(self) -> None:
        """Forgets every block: they belong to other weights now."""
        self._blocks.clear()
        self._roots.clear()

    def restore(self, ids: Sequence[int], salt: str | None, into: KeyValues) -> int:
        """Copies the longest cached prefix of `ids` into `into`; answers its length.

        At least the last id is left out: the model must run on something to say what comes next.
        """
        self.queries += len(ids)
        found: list[tuple[tuple[int, bytes], _Block]] = []
        parent = self._roots.get(salt, -1)
        for start in range(0, len(ids) - BLOCK_TOKENS, BLOCK_TOKENS):
            key = (parent, _key(ids, start))
            block = self._blocks.get(key)
            if block is None:
                break
            found.append((key, block))
            parent = block.serial
        into.reserve(len(ids))
        for index, (_, block) in enumerate(found):
            at = index * BLOCK_TOKENS
            into.data[:, :, :, at : at + BLOCK_TOKENS] = block.data
        self._touch([key for key, _ in found])
        into.length = len(found) * BLOCK_TOKENS
        self.hits += into.length
        return into.length

    def store(self, ids: Sequence[int], salt: str | None, kv: KeyValues) -> None:
        """Keeps the whole blocks of `ids`, whose keys and values are the first ones of `kv`."""
        if not self.capacity_blocks:
            return
        parent = self._roots.setdefault(salt, self._serial())
        keys: list[tuple[int, bytes]] = []
        for start in range(0, min(len(ids), kv.length) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            key = (parent, _key(ids, start))
            block = self._blocks.get(key)
            if block is None:
                block = _Block(kv.data[:, :, :, start : start + BLOCK_TOKENS].copy(), self._serial())
                self._blocks[key] = block
            keys.append(key)
            parent = block.serial
        self._touch(keys)
        while len(self._blocks) > self.capacity_blocks:
            self._blocks.popitem(last=False)
        if len(self._roots) > 2 * self.capacity_blocks:
            # Salts whose blocks are long gone; forgetting a live one too costs a recomputation only.
            self._roots.clear()

    def _touch(self, keys: list[tuple[int, bytes]]) -> None:
        # Last block first, so that of one prefix the end is evicted before the beginning: a block
        # whose parent is gone can never be found again.
        for key in reversed(keys):
            self._blocks.move_to_end(key)

    def _serial(self) -> int:
        self._next_serial += 1
        return self._next_serial


def _key(ids: Sequence[int], start: int) -> bytes:
    return np.asarray(ids[start : start + BLOCK_TOKENS], np.int32).tobytes()

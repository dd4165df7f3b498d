"""What is remembered stays within bounds."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from rollout.memo import Memo


@given(st.lists(st.integers(0, 20)), st.integers(1, 5))
def test_a_memo_holds_the_last_keys_that_were_set(keys: list[int], size: int) -> None:
    """However many keys come, the newest are there, and no more than its size."""
    memo = Memo[int, str](size)
    for key in keys:
        if key not in memo:
            memo[key] = str(key)
        assert memo[key] == str(key)
        assert len(memo) <= size


def test_threads_may_share_a_memo() -> None:
    """None of them meets an error, and it stays within its size and one key for each."""
    memo, threads = Memo[int, int](8), 4
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns as often as they can

    def fill(start: int) -> int:
        for key in range(start, start + 5_000):
            memo[key] = key
        return len(memo)

    try:
        with ThreadPoolExecutor(threads) as pool:
            sizes = list(pool.map(fill, range(0, threads * 5_000, 5_000)))
    finally:
        sys.setswitchinterval(before)
    assert max(sizes) <= 8 + threads

"""What is remembered stays within bounds."""

from __future__ import annotations

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

"""The limit of open files, raised: in processes of their own, since it is the process's."""

from __future__ import annotations

import subprocess
import sys

import pytest


def raised(soft: int, hard: int, at_once: int) -> tuple[int, int]:
    """How many rollouts it is enough for, and the soft limit afterwards."""
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from rollout.process.open_files import limit, raise_limit
print(raise_limit({at_once}), limit())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    enough, limit = done.stdout.split()
    return int(enough), int(limit)


def test_the_soft_limit_is_raised_to_what_is_needed() -> None:
    """And no further."""
    enough, limit = raised(96, 4000, 100)
    assert enough == 100
    assert 800 < limit < 1100


def test_a_limit_that_is_enough_is_left_alone() -> None:
    """A process that has more keeps it."""
    assert raised(2000, 4000, 10) == (10, 2000)


def test_a_hard_limit_says_how_many_it_is_enough_for() -> None:
    """A connection each, beside what is open already; environments' own files may be fewer than is thought."""
    enough, limit = raised(96, 500, 1000)
    assert limit == 500
    assert 300 < enough < 436


@pytest.mark.slow
def test_a_limit_that_is_enough_for_nothing_says_so() -> None:
    """Nought rollouts."""
    assert raised(40, 40, 10)[0] == 0

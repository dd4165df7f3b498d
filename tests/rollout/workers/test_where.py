"""The place in user code at which a process hung or crashed, out of what its threads were doing."""

from __future__ import annotations

import threading

from rollout.workers import where as module
from rollout.workers.where import place_of

WAITING = f"""Thread 0x1 (most recent call first):
  File "{threading.__file__}", line 327 in wait
  File "{module.__file__}", line 12 in run
"""
GRADING = f"""Thread 0x2 (most recent call first):
  File "{threading.__file__}", line 1 in match
  File "/home/me/my env.py", line 9 in step
  File "{module.__file__}", line 134 in make
"""


def test_the_frame_nearest_to_the_fault_is_named() -> None:
    """Of the first thread that is in user code; Python's own files, installed packages and ours are passed over."""
    assert place_of(f"{WAITING}\n{GRADING}") == " at /home/me/my env.py, line 9 in step"


def test_the_thread_that_crashed_comes_first() -> None:
    """Another one's place says nothing of a crash."""
    crashed = GRADING.replace("Thread 0x2", "Current thread 0x3").replace("my env.py", "grader.py")
    assert place_of(f"Fatal Python error: Aborted\n\n{GRADING}\n{crashed}") == " at /home/me/grader.py, line 9 in step"


def test_no_place_is_named_where_there_is_none() -> None:
    """No trace, or none in user code: the sentence ends without one."""
    assert place_of("") == ""
    assert place_of(WAITING) == ""

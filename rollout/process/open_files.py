"""The limit of open files: raised to what so many rollouts at once need, as far as the system lets us.

A rollout in flight holds a connection, and its environment may hold files, pipes and connections of its own. The soft
limit is a default that any process may raise up to the hard one; processes that it starts afterwards have it, too.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

#: For each rollout in flight: its connection, and what its environment opens.
FILES_PER_ROLLOUT = 8

#: For the event loop, the run folder, libraries, and connections beside those of the rollouts.
RESERVED = 64


def raise_limit(at_once: int) -> int:
    """Raises the soft limit for so many rollouts at once; gives how many of them it is enough for."""
    held = _open_now()
    needed = held + RESERVED + FILES_PER_ROLLOUT * at_once
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):  # macOS has a limit of its own beneath an infinite one
            pass
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return at_once
    return max(0, min(at_once, soft - held - RESERVED))


def limit() -> int:
    """The soft limit as it is."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _open_now() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        if Path(folder).is_dir():
            return len(os.listdir(folder))
    return RESERVED

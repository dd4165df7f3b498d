"""Where a process hung or crashed: the place in the environment's code, out of what its threads were doing. Pure."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

#: A frame as faulthandler writes it.
_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)

_OURS = str(Path(__file__).resolve().parent.parent.parent)
_NOT_USERS = tuple(
    [*(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))]
    + [f"{_OURS}/{package}/" for package in ("rollout", "transports")]
    + ["<"]
)


def place_of(trace: str) -> str:
    """` at FILE, line N in FUNCTION`: of the thread that crashed, else of the first that is in code of the user's.

    Nothing where no thread is.
    """
    threads = trace.split("\n\n")
    threads.sort(key=lambda thread: not thread.lstrip().startswith(("Current thread", "Fatal")))
    for thread in threads:
        for file, line, function in _FRAME.findall(thread):
            if not file.startswith(_NOT_USERS) and "/site-packages/" not in file:
                return f" at {file}, line {line} in {function}"
    return ""

"""A process that user code forked must not come back into the engine.

`os.fork()` copies the whole process: where the child does not leave by `os._exit` or `exec`, it returns from the call
of the environment (or raises out of it), and would go on as a second engine that writes into the same run folder and
sends on the same connections. So it ends where the call ends: with the status of its SystemExit, or with 1.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import NoReturn


def stay_in(process: int, error: BaseException | None = None) -> None:
    """Ends this process where it is not `process`, which began the call that has just returned, or raised `error`."""
    if os.getpid() != process:
        _leave(error)


def _leave(error: BaseException | None) -> NoReturn:
    status = 1
    try:
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            traceback.print_exception(error)
        else:
            line = "rollout: a process forked by an environment came back out of its call, and is ended; "
            print(f"{line}leave it by os._exit(), or start it with subprocess", file=sys.stderr)
        with contextlib.suppress(Exception):
            sys.stderr.flush()
    finally:
        os._exit(status & 0xFF)  # without exit hooks, which are the engine's

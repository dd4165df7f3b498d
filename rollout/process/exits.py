"""`os._exit` in user code is its rollout's failure, as `sys.exit` is.

It would end a run of thousands with the status of one that went well. So, in a process that is ours (the command's),
it raises SystemExit where the user code of a rollout calls it. In a forked child, and in threads that user code has
started itself, it ends the process as ever. A worker is not ours in that sense: it may end, and is started again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NoReturn

from rollout.process.user_tasks import owner


@contextlib.contextmanager
def contained_exits() -> Iterator[None]:
    """Until the block is left."""
    before, process = os._exit, os.getpid()

    def leave(status: int) -> NoReturn:
        if owner.get() is None or os.getpid() != process:
            before(status)
        raise SystemExit(status)

    os._exit = leave
    try:
        yield
    finally:
        os._exit = before

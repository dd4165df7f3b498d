"""The console script, and `python -m rollout`: the command line, or one line that says what it needs.

Importing the command line takes half a second. Control-C meanwhile is one line, as it is once a command has begun:
nothing has been done by then, so the process leaves at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from importlib.util import find_spec
from types import FrameType

#: What the command line imports, of the extra `cli`: a trainer that embeds the engine has none of it.
NEEDED = ("typer", "rich", "structlog", "tomli_w")


def main() -> None:
    """Leaves with the command's status."""
    leave_quietly()
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        named = ", ".join(missing)
        print(f"rollout: the command line needs {named}: pip install 'rollout-engine[all]'", file=sys.stderr)
        sys.exit(2)
    from rollout.cli.app import main as command

    command()


def leave_quietly() -> None:
    """Has control-C end the process with one line, wherever a command has not given it a meaning of its own."""
    ours = threading.current_thread() is threading.main_thread()
    if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stopped)


def _stopped(number: int, frame: FrameType | None) -> None:
    # No exception: what imports something may catch it, or be left half done.
    os.write(2, b"rollout: stopped\n")
    os._exit(1)


if __name__ == "__main__":
    main()

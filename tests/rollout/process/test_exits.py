"""What would end the whole process ends one call, where the process is ours and user code calls it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rollout.play.faults import EnvironmentFault
from rollout.play.host import Host, Hosts
from rollout.process.exits import contained_exits
from rollout.process.threads import Threads


async def leaves() -> None:
    os._exit(7)


@pytest.mark.parametrize("way", ["in a thread", "on the loop", "in a coroutine"])
async def test_user_code_that_leaves_fails_alone(way: str) -> None:
    """However it is called; the next call is made as if nothing was."""
    hosts = Hosts(Threads(1))
    host = Host(hosts, "r")
    host.blocks = way != "on the loop"
    with contained_exits():
        with pytest.raises(EnvironmentFault, match="step raised SystemExit: 7"):
            await host.call("step", leaves if way == "in a coroutine" else lambda: os._exit(7))
        assert await host.call("step", lambda: 5) == 5
    host.end()
    await hosts.aclose(grace_s=0)


def test_what_was_there_before_comes_back() -> None:
    """The function is Python's own again."""
    before = os._exit
    with contained_exits():
        assert os._exit is not before
    assert os._exit is before


LEAVING = """
import contextvars, os, threading
from rollout.process.exits import contained_exits
from rollout.process.user_tasks import UserTasks, owner
with contained_exits():
    {}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("os._exit(7)", 7),
        ("owner.set(UserTasks()); pid = os.fork() or os._exit(5); raise SystemExit(os.waitpid(pid, 0)[1] >> 8)", 5),
        ("owner.set(UserTasks()); t = threading.Thread(target=os._exit, args=(6,)); t.start(); t.join()", 6),
    ],
)
def test_others_leave_as_ever(code: str, status: int) -> None:
    """Code that is no rollout's, a forked child, a thread of the user's own."""
    assert subprocess.run([sys.executable, "-c", LEAVING.format(code)], timeout=300).returncode == status

"""How a process is ended, and what is said of it."""

from __future__ import annotations

import anyio

from rollout.log import get_logger
from rollout.workers.handle import Handle
from rollout.workers.launch import Worker
from rollout.workers.where import place_of

_log = get_logger(__name__)


async def end_silent(handle: Handle, worker: Worker) -> None:
    """Ends a process that does not answer any more; whoever listens to it sees that."""
    stack = await worker.trace()
    handle.why = f"{handle.why}{place_of(stack)}"
    _log.warning("process_silent", how=handle.why, rollouts=len(handle.playing), stack=stack)
    worker.kill()


async def end_of(worker: Worker, grace_s: float) -> str:
    """Waits until a process whose channel is closed has ended, or ends it; says how it ended."""
    try:
        with anyio.move_on_after(grace_s):
            return await worker.ended()
        worker.kill()
        return await worker.ended()
    finally:
        worker.channel.abort()


async def end_last(worker: Worker, grace_s: float) -> None:
    """Ends a process at the engine's end; one that does not end by itself is said, with what it was doing."""
    with anyio.move_on_after(grace_s):
        await worker.ended()
        grace_s = 0.0
    if grace_s:
        stack = await worker.trace()
        _log.warning("process_killed", why=f"it did not end within {grace_s:g} s{place_of(stack)}", stack=stack)
        worker.kill()
    await end_of(worker, 0.0)

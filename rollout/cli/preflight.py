"""What an environment looks at once, before a run plays anything: `Participant.preflight`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import anyio

from rollout import door
from rollout.errors import ConfigError, UserCodeFailed
from rollout.participant import Participant, Task
from rollout.process.imports import place_of
from rollout.process.threads import ContainedError, Threads
from rollout.registry import class_of, made


async def preflight(make_env: Callable[[], Participant], spec: str, task: Task) -> None:
    """Has an object of its own look, where its class does. Raises ConfigError.

    It waits on this loop, so that whoever ends the command ends it, too, with all that it has opened.
    """
    kind = class_of(make_env)
    if getattr(kind, "preflight", None) in (None, Participant.preflight):
        return
    threads = Threads(1)
    try:
        env = await threads.run(made, make_env)
        try:
            await _awaited(threads, lambda: env.preflight(task))
        finally:
            with anyio.CancelScope(shield=True):
                await _awaited(threads, env.close)
    except ConfigError:
        raise
    except Exception as error:
        raised = error.error if isinstance(error, ContainedError) else error
        said = f"{door.type_name(raised)}: {door.error_text(raised)}{place_of(raised)}"
        raise UserCodeFailed(f"{spec}: preflight() raised {said}") from raised
    finally:
        threads.close()


async def _awaited(threads: Threads, call: Callable[[], Any]) -> None:
    asked = await threads.run(call)
    if inspect.isawaitable(asked):
        await asked

"""What Ray raises, in one line: its own messages are a dozen, with tracebacks of processes that nobody knows. Pure."""

from __future__ import annotations

import re

#: What is kept of a message.
MOST = 400

#: What Ray tells of an actor in lines of its own, which do not say why it ended.
_DETAIL = re.compile(r"^\s*(class_name|actor_id|pid|namespace|name|ip|repr): ")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_OPENING = re.compile(r"^The actor died unexpectedly before finishing this task\.$")

#: The beginning of a line of Ray's own log.
_LOGGED = re.compile(r"^\[[^\]]*\] [\w.]+:\d+: ")


def reason(error: BaseException) -> str:
    """Why it was raised, in one line."""
    cause = getattr(error, "cause", None)
    text = f"{type(cause).__name__}: {cause}" if isinstance(cause, BaseException) else str(error)
    text = _COLOUR.sub("", text)
    if missing := re.search(r"ModuleNotFoundError: (No module named '(?:rollout|transports)[^']*')", text):
        return (
            f"{missing[1]} on its node: install this version of rollout-engine there, or name it in ray_runtime_env "
            "(pip, py_modules)"
        )
    return _joined(text) or type(error).__name__


def last_line(report: str) -> str:
    """What a process said at last, without the mark of Ray's log."""
    lines = [line.strip() for line in _COLOUR.sub("", report).splitlines()]
    return _LOGGED.sub("", next((line for line in reversed(lines) if line), ""))[:MOST]


def _joined(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if not _DETAIL.match(line)]
    lines = [line for line in lines if line and not _OPENING.match(line)]
    joined = "; ".join(line.rstrip(".") for line in lines)
    # Of what was raised in the actor the end says what it was, of Ray's own messages the beginning.
    return joined if len(joined) <= MOST else f"{joined[: MOST // 2]} ... {joined[-MOST // 2 :]}"

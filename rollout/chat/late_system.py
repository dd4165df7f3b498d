"""System and developer messages behind the beginning of a conversation, folded into the user messages beside them.

Agents send them (Claude Code and Codex do), in the middle and at the end, and many chat templates refuse them or leave
them out. What is folded goes to the end of the user message before it, else to the beginning of the one behind it, else
it is a user message of its own:

    user "hi", system "Be brief."             ->  user "hi\\n\\nBe brief."
    tool "42", system "Be brief."             ->  tool "42", user "Be brief."

A folded conversation grows as the one that was handed in does: what was sent is never folded in another way later.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from rollout.chat.messages import Message

LATE_ROLES = frozenset({"system", "developer"})


def late_places(messages: Sequence[Message]) -> list[int]:
    """Where system and developer messages stand behind a message of another role."""
    if LATE_ROLES.isdisjoint({message.role for message in messages[1:]}):  # as nearly always
        return []
    start = next((at for at, message in enumerate(messages) if message.role not in LATE_ROLES), len(messages))
    return [at for at in range(start, len(messages)) if messages[at].role in LATE_ROLES]


def neighbours(messages: Sequence[Message], place: int) -> tuple[str, str]:
    """The roles beside a late message, others of its kind left out: (before it, behind it or "")."""
    before = next(message.role for message in reversed(messages[:place]) if message.role not in LATE_ROLES)
    behind = next((message.role for message in messages[place:] if message.role not in LATE_ROLES), "")
    return before, "user" if behind == "user" else ""  # before an answer it stood at the end once


def folded(messages: Sequence[Message], places: Collection[int]) -> list[Message]:
    """The messages, those at these places folded."""
    out: list[Message] = []
    waiting: list[str] = []
    for at, message in enumerate(messages):
        if at in places:
            if out and out[-1].role == "user":
                out[-1] = _with_text(out[-1], message.text, before=False)
            else:
                waiting.append(message.text)
            continue
        if waiting and message.role == "user":
            message = _with_text(message, "\n\n".join(waiting), before=True)
        elif waiting:
            out.append(Message("user", "\n\n".join(waiting)))
        waiting = []
        out.append(message)
    return [*out, Message("user", "\n\n".join(waiting))] if waiting else out


def _with_text(message: Message, text: str, *, before: bool) -> Message:
    if isinstance(message.content, tuple):  # parts keep their place among images
        part = {"type": "text", "text": text}
        return msgspec.structs.replace(
            message, content=(part, *message.content) if before else (*message.content, part)
        )
    parts = (text, message.text) if before else (message.text, text)
    return msgspec.structs.replace(message, content="\n\n".join(filter(None, parts)) or None)

"""A history as a proof is remembered by it: of which kinds its messages are, and what a template may find in them.

What a template may find in a text (`holds`) is told by `rollout.codec.source`: False for nothing, True where it may be
anything, None where nobody can know, as of a server's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from rollout.chat.canonical import digest
from rollout.chat.messages import Message


class Walked(msgspec.Struct, frozen=True):
    """A history, and what is seen of it."""

    messages: list[Message] = []
    seen: Sequence[Message] = ()
    """Those that change what the template writes behind the turn."""
    kinds: frozenset[object] = frozenset()
    """Roles and names, whether there is a text, how many calls, and whether the model reasoned."""
    pairs: frozenset[object] = frozenset()
    """Which kinds stand behind which."""
    calls: int = 0
    """How many there are: counted with the walk, for a turn may look at new messages only."""
    by_text: bool = False
    """Whether a result of a tool may be seen for its text, and not for being one."""
    found: bytes = b""
    """Stands for what the template may find in the messages that the model did not say, one after another. Of two
    switches the last may count, and the one that is the template's default changes nothing by itself."""
    refused: bool = False
    """Whether the template refuses it, and so what it becomes, too. That says nothing of any other conversation's."""


def kind_of(message: Message, holds: object) -> object:
    """Equal for messages that a template treats alike, as far as one can know."""
    found = message.role == "assistant" and holds is not None and holds
    if found is True:
        return digest(message)  # it may find anything in what the model said
    reasons = message.reasoning_content is not None
    return message.role, message.name, bool(message.text), len(message.tool_calls), reasons, found


def and_found(before: bytes, message: Message, holds: object) -> bytes:
    """What stands for the messages of a history with this one behind them: see `Walked.found`."""
    if message.role == "assistant" or holds is False:
        return before
    if holds is None and message.role == "tool":  # what was typed may be looked for, and of a tool that it answered
        return before
    what = digest(message) if holds is None or holds is True else repr((message.role, holds)).encode()
    return hashlib.sha256(before + what).digest()

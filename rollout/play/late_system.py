"""What becomes of late system and developer messages on their way to a model: see `rollout.chat.late_system`."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_

import msgspec

from rollout.chat.late_system import folded, late_places, neighbours
from rollout.chat.messages import Message
from rollout.codec.protocol import Codec
from rollout.codec.types import Context
from rollout.config import LateSystem
from rollout.errors import MessageError


class LateSystems:
    """Settles the late messages of one session's conversations, turn by turn."""

    def __init__(self, how: LateSystem, codec: Codec | None) -> None:
        self._how, self._codec = how, codec
        self._made: list[Message] = []

    async def settled(self, messages: Sequence[Message], context: Context) -> tuple[Sequence[Message], int]:
        """(the conversation as it is to be sent, how many of its messages were folded).

        Raises MessageError where late messages are refused.
        """
        places = late_places(messages) if self._how != "keep" else []
        if not places:
            return messages, 0
        if self._how == "refuse":
            raise MessageError(
                f"message {places[0]} is a {messages[places[0]].role} message behind the beginning of the conversation,"
                " and late_system is 'refuse': send it first, or as a user's, or set late_system to auto"
            )
        fold = [at for at in places if self._how == "fold" or not await self._is_shown(messages, at, context)]
        named = [
            self._as_the_template_knows_it(message) if at in places else message for at, message in enumerate(messages)
        ]
        if not fold and all(map(is_, named, messages)):
            return messages, len(fold)
        return self._same_objects(folded(named, frozenset(fold))), len(fold)

    def _as_the_template_knows_it(self, message: Message) -> Message:
        """A developer's message is a system's to a template that has no such role.

        vLLM makes it one, too, and moves it to the front of the conversation unless it comes as a system's.
        """
        if message.role != "developer" or self._codec is None or self._codec.knows_developer:
            return message
        return msgspec.structs.replace(message, role="system")

    async def _is_shown(self, messages: Sequence[Message], at: int, context: Context) -> bool:
        if self._codec is None:  # nobody can tell, so the server decides
            return True
        before, behind = neighbours(messages, at)
        return await self._codec.shows_late(before, messages[at].role, behind, context)

    def _same_objects(self, made: list[Message]) -> list[Message]:
        """What was made last time in the place of what is equal: the same object again is not read again."""
        for at, message in enumerate(self._made[: len(made)]):
            if made[at] is not message and made[at] == message:
                made[at] = message
        self._made = made
        return made

"""What the model really said, tried in the place of the stand-in that a shape was proved with."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from rollout.chat.messages import Message
from rollout.codec import stand_in
from rollout.codec.stand_in import HEAD, Conversation, Shape, Steps


def follows(said: Message, shape: Shape, tail: Sequence[Message]) -> Steps[bool]:
    """Whether behind what was really said stands what was proved of stand-ins. Raises NotRendered."""
    probe = stand_in.with_words(tail)

    def rendered(said: Message) -> Steps[list[int]]:
        return (yield Conversation([*HEAD, said, *probe]))

    size = len(shape.rest)
    if (yield from rendered(said))[-size:] == shape.rest:
        return True
    if not said.tool_calls or not said.text:
        return False
    # Gemma 4's template writes what is said beside calls behind their results: sampled, it stands before them.
    first = yield from rendered(_saying(said, stand_in.WORDS[0]))
    second = yield from rendered(_saying(said, stand_in.WORDS[1]))
    is_moved = first != second and stand_in.common_suffix(first, second, stand_in.common_prefix(first, second)) < size
    return is_moved and (yield from rendered(_saying(said, None)))[-size:] == shape.rest


def follows_behind(
    history: Sequence[Message], said: Message, turn: Message, shape: Shape, tail: Sequence[Message]
) -> Steps[bool]:
    """Whether behind a whole history the same follows what was said as `turn`, a stand-in. Raises NotRendered.

    A template may look for what it finds in the history and in what was said together: how often, or whether in both.
    """
    probe, size = stand_in.with_words(tail), len(shape.rest)
    real = yield Conversation([*history, said, *probe])
    other = yield Conversation([*history, turn, *probe])
    return real[-size:] == other[-size:]


def _saying(message: Message, text: str | None) -> Message:
    return msgspec.structs.replace(message, content=text)

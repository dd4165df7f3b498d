"""What a chat template puts after an assistant's turn, found by rendering stand-ins. No I/O.

The real assistant's turn must never be rendered again: its sampled ids stand. So a stand-in turn is
rendered with the tail behind it, and what follows the stand-in is the bridge. That is only right where
the template treats every assistant's turn alike, so it is proved first, per shape of tail:

    two stand-ins           what follows does not depend on what the assistant said
    two histories           what follows does not depend on how much was said before (no numbering)
    two contents            where the template's own text ends and the tail's begins
    no tail                 whether the first stop token closes the turn (<|im_end|>), or opens the next
                            message (GLM's <|observation|>)

The steps are generators: they yield a conversation to render and are sent its ids, so that one algorithm
serves a local tokenizer and a server's /tokenize.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from typing import TypeVar

import msgspec

from rollout.messages import Function, Message, ToolCall, user

T = TypeVar("T")

#: Two words that share no token at either end.
_FIRST, _SECOND = "Quartz", "muffin"


class Conversation(msgspec.Struct, frozen=True):
    """What a step wants rendered."""

    messages: Sequence[Message]
    add_generation_prompt: bool = True


#: Yields conversations, is sent their ids, returns its result.
Steps = Generator[Conversation, list[int], T]


class NotExtendable(Exception):
    """The template gives no bridge for this tail; the message says why."""


class Shape(msgspec.Struct, frozen=True):
    """What was proved of a template for one shape of tail."""

    before: list[int]
    """Ids of the stand-in conversation up to the end of the stand-in, and on to before `close`."""
    close: int
    """The first stop token behind the stand-in."""
    closes_turn: bool
    """Whether `close` ends the assistant's turn; else it is also the next message's role marker."""


def prove_shape(previous: Message | None, tail: Sequence[Message], stop_ids: Collection[int]) -> Steps[Shape]:
    """Proves what follows an assistant's turn for tails of this shape. Raises NotExtendable."""
    probe = [_with_text(message, _FIRST) for message in tail]
    first = yield Conversation([user("."), _stand_in(previous, tail, _FIRST), *probe])
    second = yield Conversation([user("."), _stand_in(previous, tail, _SECOND), *probe])
    start = _common_prefix(first, second)
    behind = _common_suffix(first, second, start)
    longer = yield Conversation(
        [user("."), Message("assistant", "."), user("."), _stand_in(previous, tail, _FIRST), *probe]
    )
    if longer[start - len(first) :] != first[start:]:
        raise NotExtendable("the template's text depends on how many turns came before")
    other_probe = [_with_text(message, _SECOND) for message in tail]
    other = yield Conversation([user("."), _stand_in(previous, tail, _FIRST), *other_probe])
    own_text = _common_prefix(first, other)
    close = next((i for i in range(len(first) - behind, own_text) if first[i] in stop_ids), None)
    if close is None:
        raise NotExtendable("the template puts no stop token behind an assistant's turn")
    bare = yield Conversation([user("."), _stand_in(previous, tail, _FIRST)], add_generation_prompt=False)
    # Templates may render the last turn in another way, so only its end is compared.
    closes_turn = first[close] in bare[-4:]
    return Shape(before=first[:close], close=first[close], closes_turn=closes_turn)


def bridge(
    previous: Message | None,
    tail: Sequence[Message],
    shape: Shape,
    completion_end: int | None,
    stop_ids: Collection[int],
    eos_id: int | None,
) -> Steps[list[int]]:
    """The ids that follow a completion whose last id is `completion_end`. Raises NotExtendable."""
    ids = yield Conversation([user("."), _stand_in(previous, tail, _FIRST), *tail])
    length = len(shape.before)
    if ids[:length] != shape.before or ids[length : length + 1] != [shape.close]:
        raise NotExtendable("the template renders this tail in another way than its shape")
    rest = ids[length + 1 :]
    if completion_end == shape.close:
        return rest
    if completion_end not in stop_ids:  # cut off: the bridge closes the turn
        return [shape.close, *rest]
    if shape.closes_turn:  # another stop token ended the turn: it stands in the close's place
        return rest
    if completion_end == eos_id:
        return [shape.close, *rest]
    raise NotExtendable(f"the turn ended with the role marker {completion_end}, and the tail opens with {shape.close}")


def drive(steps: Steps[T], render: Callable[[Conversation], list[int]]) -> T:
    """Runs steps with a function that renders."""
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(render(wanted))
    except StopIteration as stop:
        result: T = stop.value
        return result


def shape_key(previous: Message | None, tail: Sequence[Message]) -> tuple[object, ...]:
    """Equal for tails whose proof is the same: roles, names and call ids count, texts do not."""
    calls = tuple((call.id, call.name) for call in previous.tool_calls) if previous is not None else ()
    return calls, tuple((message.role, message.name, message.tool_call_id, bool(message.text)) for message in tail)


def _stand_in(previous: Message | None, tail: Sequence[Message], word: str) -> Message:
    calls = _calls_answered(previous, tail)
    if not calls:
        return Message("assistant", word)
    # The calls must be there for templates that look them up; the word goes where it is rendered last.
    arguments = ["{}"] * (len(calls) - 1) + [f'{{"a": "{word}"}}']
    return Message(
        "assistant",
        tool_calls=tuple(
            ToolCall(id=call.id, function=Function(call.name, text))
            for call, text in zip(calls, arguments, strict=True)
        ),
    )


def _calls_answered(previous: Message | None, tail: Sequence[Message]) -> Sequence[ToolCall]:
    """The calls that a tail's tool messages answer: the assistant's, or some that fit where it has none.

    An environment may read calls that our parser does not; templates look them up, or raise without them.
    """
    answers = [message for message in tail if message.role == "tool"]
    calls = previous.tool_calls if previous is not None and answers else ()
    if calls or not answers:
        return calls
    return [
        ToolCall(id=message.tool_call_id or f"call{i:05d}", function=Function(message.name or "tool"))
        for i, message in enumerate(answers)
    ]


def _with_text(message: Message, text: str) -> Message:
    return msgspec.structs.replace(message, content=text if message.text else None)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _common_suffix(a: Sequence[int], b: Sequence[int], start: int) -> int:
    limit = min(len(a), len(b)) - start
    return next((i for i in range(limit) if a[-1 - i] != b[-1 - i]), limit)

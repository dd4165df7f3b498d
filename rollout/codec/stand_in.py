"""What a chat template puts after an assistant's turn, found by rendering stand-ins. No I/O.

The real assistant's turn must never be rendered again: its sampled ids stand. So a stand-in turn is
rendered with the tail behind it, and what follows the stand-in is the bridge. That is only right where
the template treats every assistant's turn alike, so it is proved first, per shape of tail:

    two stand-ins           what follows does not depend on what the assistant said
    two histories           what follows does not depend on how much was said before (no numbering)
    two contents            where the template's own text ends and the tail's begins
    no tail, two stand-ins  whether the token behind the stand-in closes the turn (<|im_end|>), opens the next
                            message (GLM's <|observation|>), or is written in a stop token's place (gpt-oss
                            ends a last turn with <|return|>, an earlier one with <|end|>)

The steps are generators: they yield a conversation to render and are sent its ids, so that one algorithm
serves a local tokenizer and a server's /tokenize.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import Literal, TypeVar

import msgspec

from rollout.chat.messages import Function, Message, ToolCall, user
from rollout.door import error_text
from rollout.memo import Memo

T = TypeVar("T")

#: Two words that share no token at either end.
_FIRST, _SECOND = "Quartz", "muffin"

#: Call ids as Mistral's, OpenAI's and Kimi's templates know them.
_OTHER_IDS = ("q7Xw{:05d}", "call_{:024x}", "functions.quartz:{}")


class Conversation(msgspec.Struct, frozen=True):
    """What a step wants rendered."""

    messages: Sequence[Message]
    add_generation_prompt: bool = True


#: Yields conversations, is sent their ids, returns its result.
Steps = Generator[Conversation, list[int], T]


#: How the stand-in speaks. With calls where tool messages follow; some templates render calls only beside text,
#: and some refuse what comes after them.
Form = Literal["calls", "calls_and_text", "text"]


class NotExtendable(Exception):
    """The template gives no bridge for this tail; the message says why."""


class NotRendered(NotExtendable):
    """The template refuses a conversation. Whoever drives the steps throws it into them."""


class Shape(msgspec.Struct, frozen=True):
    """What was proved of a template for one shape of tail."""

    before: list[int]
    """Ids of the stand-in conversation up to the end of the stand-in, and on to before `close`."""
    close: int
    """The token behind the stand-in that ends the turn, or that the next message opens with."""
    closes_turn: bool
    """Whether `close` ends the assistant's turn; else it is the next message's role marker."""
    form: Form
    """The form of the stand-in with which this was proved."""


def prove_shape(previous: Message | None, tail: Sequence[Message], stop_ids: Collection[int]) -> Steps[Shape]:
    """Proves what follows an assistant's turn for tails of this shape. Raises NotExtendable."""
    probe = [_with_text(message, _FIRST) for message in tail]
    form, first, second = yield from _shown(previous, tail, probe)
    start = _common_prefix(first, second)
    behind = len(first) - _common_suffix(first, second, start)
    turn = _stand_in(previous, tail, _FIRST, form)
    longer = yield Conversation([user("."), Message("assistant", "."), user("."), turn, *probe])
    if longer[start - len(first) :] != first[start:]:
        raise NotExtendable("the template's text depends on how many turns came before")
    other = yield Conversation([user("."), turn, *(_with_text(message, _SECOND) for message in tail)])
    ending = yield from _last_turns_end(previous, tail, form)
    close = _find_close(first[behind : _common_prefix(first, other)], ending, stop_ids)
    if close is None:
        raise NotExtendable("the template puts no stop token behind an assistant's turn")
    token = first[behind + close]
    closes_turn = token in ending or token not in stop_ids
    return Shape(before=first[: behind + close], close=token, closes_turn=closes_turn, form=form)


def _shown(
    previous: Message | None, tail: Sequence[Message], probe: Sequence[Message]
) -> Steps[tuple[Form, list[int], list[int]]]:
    """The first form of stand-in that the template shows, and the conversation with each of the two stand-ins."""
    why = NotRendered("the template does not show what the assistant says")
    for form in _forms(previous, tail):
        try:
            first = yield Conversation([user("."), _stand_in(previous, tail, _FIRST, form), *probe])
            second = yield Conversation([user("."), _stand_in(previous, tail, _SECOND, form), *probe])
        except NotRendered as error:
            why = error
            continue
        if first != second:
            return form, first, second
    raise why


def _last_turns_end(previous: Message | None, tail: Sequence[Message], form: Form) -> Steps[list[int]]:
    """What the template puts behind a turn that is the last message. The turn itself may be in another form there."""
    try:
        first = yield Conversation([user("."), _stand_in(previous, tail, _FIRST, form)], add_generation_prompt=False)
        second = yield Conversation([user("."), _stand_in(previous, tail, _SECOND, form)], add_generation_prompt=False)
    except NotRendered:
        if form == "text":
            raise
        return (yield from _last_turns_end(previous, tail, "text"))  # calls without results may be refused
    return first[len(first) - _common_suffix(first, second, _common_prefix(first, second)) :]


def _find_close(own_text: Sequence[int], ending: Sequence[int], stop_ids: Collection[int]) -> int | None:
    """Where in the template's own text behind a turn the turn is closed."""
    close = next((i for i, token in enumerate(own_text) if token in stop_ids), None)
    if close is not None:
        return close
    # As a last turn it ends with a stop token, as an earlier one with another token in the same place.
    at = next((i for i, token in enumerate(ending) if token in stop_ids), len(own_text))
    return at if at < len(own_text) and own_text[:at] == ending[:at] else None


def bridge(
    previous: Message | None,
    tail: Sequence[Message],
    shape: Shape,
    completion_end: int | None,
    stop_ids: Collection[int],
) -> Steps[list[int]]:
    """The ids that follow a completion whose last id is `completion_end`. Raises NotExtendable."""
    ids = yield Conversation([user("."), _stand_in(previous, tail, _FIRST, shape.form), *tail])
    length = len(shape.before)
    if ids[:length] != shape.before or ids[length : length + 1] != [shape.close]:
        raise NotExtendable("the template renders this tail in another way than its shape")
    rest = ids[length + 1 :]
    if completion_end == shape.close:
        return rest
    # Another stop token that ended the turn stands in the close's place. It never stands in a role marker's: a
    # model that sampled the wrong role's marker (<|user|>, and a tool answers) has sampled it, so it stays.
    if completion_end in stop_ids and shape.closes_turn:
        return rest
    return [shape.close, *rest]


def drive(steps: Steps[T], render: Callable[[Conversation], list[int]]) -> T:
    """Runs steps with a function that renders. An error of it is the template's refusal."""
    try:
        wanted = next(steps)
        while True:
            try:
                ids = render(wanted)
            except Exception as error:  # templates raise Jinja's errors, renderers their own: the steps may know better
                wanted = steps.throw(NotRendered(f"the template refuses: {error_text(error)}"))
            else:
                wanted = steps.send(ids)
    except StopIteration as stop:
        result: T = stop.value
        return result


def shape_key(previous: Message | None, tail: Sequence[Message]) -> tuple[object, ...]:
    """Equal for tails whose proof is the same, whatever the texts. Of call ids it says only which are the same."""
    places: dict[str, int] = {}

    def place(call_id: str | None) -> int | None:
        return places.setdefault(call_id, len(places)) if call_id else None

    calls = tuple((place(call.id), call.name) for call in previous.tool_calls) if previous is not None else ()
    return calls, tuple(
        (message.role, message.name, place(message.tool_call_id), bool(message.text)) for message in tail
    )


def call_ids(previous: Message | None, tail: Sequence[Message]) -> tuple[str, ...]:
    """The call ids that a tail's rendering may show, each once."""
    calls = [call.id for call in previous.tool_calls] if previous is not None else []
    return tuple(dict.fromkeys(filter(None, [*calls, *(message.tool_call_id for message in tail)])))


def renamed(previous: Message | None, tail: Sequence[Message]) -> Iterator[tuple[Message | None, list[Message]]]:
    """The same with other call ids: of other lengths, letters and forms."""
    ids = call_ids(previous, tail)
    for form in _OTHER_IDS:
        names: dict[str | None, str] = {one: form.format(at) for at, one in enumerate(ids)}
        calls = [
            msgspec.structs.replace(call, id=names.get(call.id, call.id))
            for call in (previous.tool_calls if previous is not None else ())
        ]
        yield (
            previous and msgspec.structs.replace(previous, tool_calls=tuple(calls)),
            [msgspec.structs.replace(m, tool_call_id=names.get(m.tool_call_id, m.tool_call_id)) for m in tail],
        )


def ids_matter(previous: Message | None, tail: Sequence[Message]) -> Steps[bool]:
    """Whether the template writes something else for other call ids: then each id needs a proof of its own.

    Most templates never print them, and an id is new with every call.
    """
    form: Form
    for form in _forms(previous, tail):
        try:
            first = yield _shown_with(previous, tail, form)
        except NotRendered:
            continue
        try:
            for other, other_tail in renamed(previous, tail):
                if (yield _shown_with(other, other_tail, form)) != first:
                    return True
        except NotRendered:  # Mistral's refuse ids that are not of nine letters and digits
            return True
        return False
    return True


def _shown_with(previous: Message | None, tail: Sequence[Message], form: Form) -> Conversation:
    probe = [_with_text(message, _FIRST) for message in tail]
    return Conversation([user("."), _stand_in(previous, tail, _FIRST, form), *probe])


def _stand_in(previous: Message | None, tail: Sequence[Message], word: str, form: Form) -> Message:
    calls = _calls_answered(previous, tail)
    if form == "text":
        return Message("assistant", word)
    # The calls must be there for templates that look them up; the word goes where it is rendered last.
    arguments = ["{}"] * (len(calls) - 1) + [f'{{"a": "{word}"}}']
    return Message(
        "assistant",
        word if form == "calls_and_text" else None,
        tool_calls=tuple(
            ToolCall(id=call.id, function=Function(call.name, text))
            for call, text in zip(calls, arguments, strict=True)
        ),
    )


def _forms(previous: Message | None, tail: Sequence[Message]) -> Sequence[Form]:
    return ("calls", "calls_and_text", "text") if _calls_answered(previous, tail) else ("text",)


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


class ShapeCache:
    """The shapes that were proved, and those that cannot be: a proof is asked for once."""

    def __init__(self, size: int = 256) -> None:
        self._shapes = Memo[object, Shape | str](size)
        self._ids_matter = Memo[object, bool](size)

    def steps(
        self,
        previous: Message | None,
        tail: Sequence[Message],
        context_key: bytes,
        completion_end: int | None,
        stop_ids: Collection[int],
    ) -> Steps[list[int]]:
        """The steps to a bridge, the proof of its shape included where it is new."""
        matter = yield from self.ids_matter(previous, tail, context_key)
        ids = call_ids(previous, tail) if matter else ()
        key = (context_key, shape_key(previous, tail), ids, tuple(stop_ids))
        shape = self._shapes.get(key)
        if shape is None:
            try:
                shape = yield from prove_shape(previous, tail, stop_ids)
            except NotExtendable as error:
                shape = str(error)
            self._shapes[key] = shape
        if isinstance(shape, str):
            raise NotExtendable(shape)
        return (yield from bridge(previous, tail, shape, completion_end, stop_ids))

    def ids_matter(self, previous: Message | None, tail: Sequence[Message], context_key: bytes) -> Steps[bool]:
        """The steps to whether a tail's call ids change what is written; asked once for each shape."""
        if not call_ids(previous, tail):
            return False
        key = (context_key, shape_key(previous, tail))
        if key not in self._ids_matter:
            self._ids_matter[key] = yield from ids_matter(previous, tail)
        return self._ids_matter[key]

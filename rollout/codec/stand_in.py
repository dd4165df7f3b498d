"""What a chat template puts after an assistant's turn, found by rendering stand-ins. No I/O.

The real assistant's turn must never be rendered again: its sampled ids stand. So a stand-in turn is
rendered with the tail behind it, and what follows the stand-in is the bridge. That is only right where
the template treats every assistant's turn alike, so it is proved first, per shape of tail:

    two stand-ins           what follows does not depend on what the assistant said
    two histories           what follows does not depend on how much was said before (no numbering)
    two contents            where the template's own text ends and the tail's begins, and that it shows each message
    no tail, two stand-ins  whether the token behind the stand-in closes the turn (<|im_end|>), opens the next
                            message (GLM's <|observation|>), or is written in a stop token's place (gpt-oss
                            ends a last turn with <|return|>, an earlier one with <|end|>)

What stands before the stand-in is a short head in place of the real history, where the template writes the same behind
both (`rollout.codec.history`). It may change from day to day (a date): then the stand-in is looked for anew.

The steps are generators: they yield a conversation to render and are sent its ids, so that one algorithm
serves a local tokenizer and a server's /tokenize.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

import msgspec

from rollout.chat.messages import Function, Message, ToolCall, user
from rollout.door import error_text

T = TypeVar("T")

#: Two words that share no token at either end.
WORDS = _FIRST, _SECOND = "Quartz", "muffin"

#: Call ids as Mistral's, OpenAI's and Kimi's templates know them.
_OTHER_IDS = ("q7Xw{:05d}", "call_{:024x}", "functions.quartz:{}")

_LETTERS = re.compile("[0-9A-Za-z]")


class Conversation(msgspec.Struct, frozen=True):
    """What a step wants rendered."""

    messages: Sequence[Message]
    add_generation_prompt: bool = True


#: Yields conversations, is sent their ids, returns its result.
Steps = Generator[Conversation, list[int], T]


#: What stands before the stand-in, in the place of the real history.
Head = Sequence[Message]
HEAD: Head = (user("."),)

#: How the stand-in speaks. With calls where tool messages follow; some templates render calls only beside text,
#: and some refuse what comes after them.
Form = Literal["calls", "calls_and_text", "text"]


class NotExtendable(Exception):
    """The template gives no bridge for this tail; the message says why."""


class NotRendered(NotExtendable):
    """The template refuses a conversation. Whoever drives the steps throws it into them."""


class Shape(msgspec.Struct, frozen=True):
    """What was proved of a template for one shape of tail."""

    gap: int
    """How many ids stand between what the stand-in says and `close`: the end of a call's syntax, say."""
    following: list[int]
    """Ids of the probed conversation from what the stand-in says on: what another history must not change."""
    rest: list[int]
    """Those behind the close."""
    close: int
    """The token behind the stand-in that ends the turn, or that the next message opens with."""
    closes_turn: bool
    """Whether `close` ends the assistant's turn; else it is the next message's role marker."""
    form: Form
    """The form of the stand-in with which this was proved."""


def prove_shape(
    previous: Message | None, tail: Sequence[Message], stop_ids: Collection[int], head: Head = HEAD
) -> Steps[Shape]:
    """Proves what follows an assistant's turn for tails of this shape. Raises NotExtendable."""
    probe = with_words(tail)
    form, first, second = yield from _shown(previous, tail, probe, head)
    start = common_prefix(first, second)
    behind = len(first) - common_suffix(first, second, start)
    turn = stand_in_turn(previous, tail, form)
    longer = yield Conversation([*head, Message("assistant", "."), user("."), turn, *probe])
    if longer[start - len(first) :] != first[start:]:
        raise NotExtendable("the template's text depends on how many turns came before")
    own_text = first[behind : (yield from _tails_start(first, turn, tail, probe, head))]
    ending = yield from _last_turns_end(previous, tail, form, head)
    close = _find_close(own_text, ending, stop_ids)
    if close is not None and own_text[close] not in stop_ids:
        is_close = yield from _closes_earlier(previous, tail, form, head, own_text[close:], close, stop_ids)
        close = close if is_close else None
    if close is None:
        raise NotExtendable("the template puts no stop token behind an assistant's turn")
    token = first[behind + close]
    return Shape(
        gap=close,
        following=first[start:],
        rest=first[behind + close + 1 :],
        close=token,
        closes_turn=token in ending or token not in stop_ids,
        form=form,
    )


def _tails_start(
    first: Sequence[int], turn: Message, tail: Sequence[Message], probe: Sequence[Message], head: Head
) -> Steps[int]:
    """Where the template's own text ends and the tail's begins. Raises NotExtendable for a message that is not shown.

    What an environment added may not vanish: Llama 3's and Phi-3's templates know no tool messages.
    """
    starts = [len(first)]
    for at, message in enumerate(tail):
        other = yield Conversation([*head, turn, *probe[:at], _with_text(message, _SECOND), *probe[at + 1 :]])
        if other == first:
            raise NotExtendable(f"the template does not show the {message.role} message")
        starts.append(common_prefix(first, other))
    return min(starts)


def _shown(
    previous: Message | None, tail: Sequence[Message], probe: Sequence[Message], head: Head
) -> Steps[tuple[Form, list[int], list[int]]]:
    """The first form of stand-in that the template shows, and the conversation with each of the two stand-ins."""
    why = NotRendered("the template does not show what the assistant says")
    for form in _forms(previous, tail):
        try:
            first = yield Conversation([*head, stand_in_turn(previous, tail, form), *probe])
            second = yield Conversation([*head, stand_in_turn(previous, tail, form, _SECOND), *probe])
        except NotRendered as error:
            why = error
            continue
        if first != second:
            return form, first, second
    raise why


def _last_turns_end(
    previous: Message | None, tail: Sequence[Message], form: Form, head: Head, *, prompts: bool = False
) -> Steps[list[int]]:
    """What the template puts behind a turn that is the last message, the generation prompt with it where one is asked.

    The turn itself may be in another form there.
    """
    try:
        first = yield Conversation([*head, stand_in_turn(previous, tail, form)], prompts)
        second = yield Conversation([*head, stand_in_turn(previous, tail, form, _SECOND)], prompts)
    except NotRendered:
        if form == "text":
            raise
        # Calls without results may be refused.
        return (yield from _last_turns_end(previous, tail, "text", head, prompts=prompts))
    return first[len(first) - common_suffix(first, second, common_prefix(first, second)) :]


def _find_close(own_text: Sequence[int], ending: Sequence[int], stop_ids: Collection[int]) -> int | None:
    """Where in the template's own text behind a turn the turn is closed."""
    close = next((i for i, token in enumerate(own_text) if token in stop_ids), None)
    if close is not None:
        return close
    # As a last turn it ends with a stop token, as an earlier one with another token in the same place.
    at = next((i for i, token in enumerate(ending) if token in stop_ids), len(own_text))
    return at if at < len(own_text) and own_text[:at] == ending[:at] else None


def _closes_earlier(
    previous: Message | None,
    tail: Sequence[Message],
    form: Form,
    head: Head,
    own_text: Sequence[int],
    at: int,
    stop_ids: Collection[int],
) -> Steps[bool]:
    """Whether a token in a stop token's place, with which `own_text` begins, closes a turn.

    Phi-3's templates end the whole with a stop token, and what stands in its place is the next message's role. A close
    stands before a generation prompt, too, or a stop token does and the next message opens as behind the close.
    """
    try:
        behind = yield from _last_turns_end(previous, tail, form, head, prompts=True)
        prompted = yield Conversation(HEAD)
        alone = yield Conversation(HEAD, add_generation_prompt=False)
    except NotRendered:
        return False
    start, token, next_one = common_prefix(prompted, alone), own_text[:1], own_text[1:2]
    if prompted[start : start + 1] == token:
        return False
    is_stop = behind[at : at + 1] != [] and behind[at] in stop_ids
    return behind[at : at + 1] == token or (is_stop and behind[at + 1 : at + 2] == next_one)


def closings(previous: Message | None, tail: Sequence[Message]) -> Steps[frozenset[int]]:
    """Every id that the template writes between an assistant's turn and a tail, or behind a last turn."""
    probe = with_words(tail)
    form, first, second = yield from _shown(previous, tail, probe, HEAD)
    behind = len(first) - common_suffix(first, second, common_prefix(first, second))
    turn = stand_in_turn(previous, tail, form)
    own_text = first[behind : (yield from _tails_start(first, turn, tail, probe, HEAD))]
    return frozenset([*own_text, *(yield from _last_turns_end(previous, tail, form, HEAD))])


def bridge(
    previous: Message | None,
    tail: Sequence[Message],
    shape: Shape,
    completion_end: int | None,
    stop_ids: Collection[int],
    head: Head = HEAD,
    before: list[int] | None = None,
) -> Steps[tuple[list[int], list[int]]]:
    """(the ids that follow a completion whose last id is `completion_end`, what stands before the close).

    `before` is what stood there last time behind this head. Raises NotExtendable.
    """
    ids = yield Conversation([*head, stand_in_turn(previous, tail, shape.form), *tail])
    at = len(before) if before is not None else 0
    if not at or ids[:at] != before or ids[at : at + 1] != [shape.close]:
        other = yield Conversation([*head, stand_in_turn(previous, tail, shape.form, _SECOND), *tail])
        at = len(ids) - common_suffix(ids, other, common_prefix(ids, other)) + shape.gap
        if ids[at : at + 1] != [shape.close]:
            raise NotExtendable("the template renders this tail in another way than its shape")
    rest, before = ids[at + 1 :], ids[:at]
    if completion_end == shape.close:
        return rest, before
    # Another stop token that ended the turn stands in the close's place. It never stands in a role marker's: a
    # model that sampled the wrong role's marker (<|user|>, and a tool answers) has sampled it, so it stays.
    if completion_end in stop_ids and shape.closes_turn:
        return rest, before
    return [shape.close, *rest], before


def drive(steps: Steps[T], render: Callable[[Conversation], list[int]]) -> T:
    """Runs steps with a function that renders. An error of it is the template's refusal."""
    try:
        wanted = next(steps)
        while True:
            try:
                ids = render(wanted)
            except NotExtendable as error:  # a rule of ours
                wanted = steps.throw(NotRendered(str(error)))
            except Exception as error:  # templates raise Jinja's errors, renderers their own: the steps may know better
                wanted = steps.throw(NotRendered(f"the template refuses{_at_line(error)}: {error_text(error)}"))
            else:
                wanted = steps.send(ids)
    except StopIteration as stop:
        result: T = stop.value
        return result


def _at_line(error: Exception) -> str:
    """Where in a Jinja template an error arose; "" for what is no template's."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename == "<template>"]
    return f" at its line {lines[-1]}" if lines else ""


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
        yield with_ids(previous, tail, {one: form.format(at) for at, one in enumerate(ids)})


def with_ids(
    previous: Message | None, tail: Sequence[Message], names: Mapping[str | None, str]
) -> tuple[Message | None, list[Message]]:
    """The same with other call ids."""
    calls = [
        msgspec.structs.replace(call, id=names.get(call.id, call.id))
        for call in (previous.tool_calls if previous is not None else ())
    ]
    return (
        previous and msgspec.structs.replace(previous, tool_calls=tuple(calls)),
        [msgspec.structs.replace(m, tool_call_id=names.get(m.tool_call_id, m.tool_call_id)) for m in tail],
    )


def renamed_ids(messages: Sequence[Message]) -> list[Message]:
    """A conversation with call ids by their number."""
    names: dict[str | None, str] = {}
    out = []
    for message in messages:
        for call_id in (*(call.id for call in message.tool_calls), message.tool_call_id):
            if call_id:
                names.setdefault(call_id, f"call{len(names):05d}")
        calls = tuple(msgspec.structs.replace(call, id=names.get(call.id, call.id)) for call in message.tool_calls)
        call_id = names.get(message.tool_call_id, message.tool_call_id)
        out.append(msgspec.structs.replace(message, tool_calls=calls, tool_call_id=call_id))
    return out


def id_form(call_id: str) -> str:
    """Equal for ids that differ in their letters and digits only: what a template does with one it does with another.

    Templates print ids, compare them, or refuse those of another length or alphabet.
    """
    return _LETTERS.sub("x", call_id)


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
    return Conversation([*HEAD, stand_in_turn(previous, tail, form), *with_words(tail)])


def stand_in_turn(previous: Message | None, tail: Sequence[Message], form: Form, word: str = _FIRST) -> Message:
    """The turn that stands for the assistant's, and says `word`."""
    calls = _calls_answered(previous, tail)
    if form == "text":
        return Message("assistant", word)
    # The calls must be there for templates that look them up. Some show only the first of them, so each has the word.
    arguments = f'{{"a": "{word}"}}'
    return Message(
        "assistant",
        word if form == "calls_and_text" else None,
        tool_calls=tuple(ToolCall(id=call.id, function=Function(call.name, arguments)) for call in calls),
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


def with_words(messages: Sequence[Message]) -> list[Message]:
    """The messages with a word in the place of each text."""
    return [_with_text(message, _FIRST) if message.text else _with_text(message, None) for message in messages]


def _with_text(message: Message, text: str | None) -> Message:
    return msgspec.structs.replace(message, content=text)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def common_suffix(a: Sequence[int], b: Sequence[int], start: int) -> int:
    limit = min(len(a), len(b)) - start
    return next((i for i in range(limit) if a[-1 - i] != b[-1 - i]), limit)

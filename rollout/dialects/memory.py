"""What one session has seen and said, within bounds: messages by their bytes, answers by the ids that were handed out.

A conversation comes again with every turn, so what was decoded once is found by a digest of its bytes, and is the very
same `Message`: the planner compares objects. A few messages change their bytes and say the same (a cache mark moved):
they are decoded again, and are the same object for all that.

What the model itself said comes back changed. Ids of calls are ours on the wire, since the model's own repeat between
branches; reasoning is dropped by most clients. It is found again, and is the original message,

    by an id that was handed out with it    a call's, an item's, a thinking block's signature
    else by what it says, at its place      the same text and calls, behind the same messages

if its text, its calls and such reasoning as is there still are what the model said. A client that changed them has
written a message of its own. By its text alone an answer is found only behind the messages that it answered: a judge
that is shown "4" is not shown the reasoning of some other conversation that came to "4".
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import msgspec

from rollout.chat.canonical import digest, value_digest
from rollout.chat.messages import Message, ToolCall
from rollout.dialects.answers import Answer, is_same, joined, seal, text_key
from rollout.dialects.beginnings import Beginnings, settled_items
from rollout.dialects.fields import items as cut
from rollout.dialects.tools import Tools
from rollout.dialects.types import Call, DialectError, Said
from rollout.errors import MessageError
from rollout.memo import Memo

V = TypeVar("V")

#: Answers that say the same behind the same messages and differ in their reasoning: more are told apart by ids only.
_SAME_TEXT = 16

#: Items that one answer is at most where its looks do not tell: its reasoning, its text, its calls.
_MOST_PARTS = 32

#: (the message, its mark, the answer that it is, whether its reasoning was put back)
_Resolved = tuple[Message, int, Answer | None, bool]


class MemoryLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much a session remembers. What is over it is forgotten, the longest unused first."""

    messages: int = 20_000
    """Messages known by their bytes."""
    bytes: int = 64 * 2**20
    """Bytes of the messages known by their bytes, as they came."""
    answers: int = 4_096
    """Answers known by their ids, which `previous_response_id` may name."""


class Known(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One item of a request, decoded."""

    messages: tuple[Message, ...]
    marks: tuple[int, ...]
    """Of each message: the same for other bytes that say the same."""
    said: bool = False
    """Whether it is the model's, or a part of that: then what it is depends on what stands before it."""
    keys: tuple[str, ...] = ()
    """Ids in it that may have been handed out here."""
    begins: bool = False
    """Whether it is the first part of an answer, such as its reasoning."""


class Memory:
    """What one session remembers. A rollout has one, which every dialect shares."""

    def __init__(self, limits: MemoryLimits | None = None) -> None:
        limits = limits or MemoryLimits()
        self._items = _Kept[Known](limits.messages, limits.bytes)
        self._messages = _Kept[Message](limits.messages, limits.bytes)
        self._beginnings = Beginnings()
        self._tools = Memo[bytes, Tools](64)
        self._runs = Memo[tuple[int, ...], list[_Resolved]](limits.messages)
        self._answers = Memo[str, Answer](limits.answers)
        self._ids = Memo[str, tuple[Answer, int]](8 * limits.answers)
        self._texts = Memo[tuple[int, bytes], tuple[Answer, ...]](limits.answers)
        self._missed = Memo[tuple[int, bytes], bool](limits.messages)
        """Places at which a client wrote a text that the model had not said there."""
        self.decoded = 0
        """Items that were decoded: grows with what is new only."""

    def __repr__(self) -> str:
        return f"<Memory {len(self._items)} items, {len(self._answers)} answers>"

    def item(self, raw: msgspec.Raw, kind: bytes, decode: Callable[[msgspec.Raw], Known]) -> Known:
        """One item of a request, decoded where its bytes were not seen yet. `kind` is the dialect's."""
        key = hashlib.sha256(raw).digest() + kind  # sha256, since processors have instructions for it
        if (known := self._items.get(key)) is None:
            self.decoded += 1
            with _readable():
                known = decode(raw)
            self._items.put(key, known, memoryview(raw).nbytes)
        return known

    def known(
        self, messages: Iterable[Message], *, said: bool = False, keys: tuple[str, ...] = (), begins: bool = False
    ) -> Known:
        """Messages as an item: each is the object that said the same before, where there is one."""
        ours, marks = [], []
        for message in messages:
            key = digest(message)
            if (known := self._messages.get(key)) is None:
                self._messages.put(key, known := message, _weight(message))
            ours.append(known)
            marks.append(hash((key, keys)) if keys else hash(key))
        return Known(messages=tuple(ours), marks=tuple(marks), said=said, keys=keys, begins=begins)

    def tools(self, raw: msgspec.Raw, kind: bytes, decode: Callable[[msgspec.Raw], Tools]) -> Tools:
        """The tools of a request: the same object for the same bytes, and for others that offer the same."""
        key = hashlib.sha256(raw).digest() + kind
        if (known := self._tools.get(key)) is None:
            with _readable():
                made = decode(raw)
                value = value_digest([made.specs, made.names, made.left_out])
            if (known := self._tools.get(value)) is None:
                known = self._tools[value] = made
            self._tools[key] = known
        return known

    def conversation(
        self,
        raw: msgspec.Raw,
        name: str,
        kind: bytes,
        decode: Callable[[msgspec.Raw, str], Known],
        call: Call,
        *,
        join: bool,
    ) -> Known | None:
        """Puts a request's list of items into a call, as `read` does; its last item, where that was not known before.

        `decode` reads an item that was not seen yet, by its bytes and its place, such as `messages[3]`. What the list
        begins with is known from the turn before.
        """
        rest = self._beginnings.find(raw, kind, call)
        raws = cut(rest.json, name)
        found = [
            self.item(each, kind, lambda raw, at=at: decode(raw, f"{name}[{at}]"))  # type: ignore[misc]  # its default
            for at, each in enumerate(raws, rest.count)
        ]
        settled = settled_items([each.said for each in found])
        if settled:
            self.read(found[:settled], call, join=join)
            self._beginnings.keep(rest, raws[:settled], call)
        self.read(found[settled:], call, join=join)
        return found[-1] if found else None

    def read(self, items: Iterable[Known], call: Call, *, join: bool) -> None:
        """Puts a conversation into a call, behind the messages that it has, what the model said as the model said it.

        `join` takes parts of the assistant's in a row for one message.
        """
        run: list[Known] = []
        for item in items:
            if item.said:
                if run and not join:
                    self._take(run, call)
                    run = []
                run.append(item)
                continue
            if run:
                self._take(run, call)
                run = []
            call.messages += item.messages
            for mark in item.marks:
                call.mark = hash((call.mark, mark))
        if run:
            self._take(run, call)

    def go_on(self, identifier: str, call: Call) -> bool:
        """Puts the conversation that an answer ended into a call; False where that answer is not known any more."""
        if (answer := self.answer(identifier)) is None:
            return False
        call.messages, call.mark, call.previous = answer.conversation(), answer.mark, answer
        return True

    def own_call_id(self, wire: str | None) -> str | None:
        """The id that the model's template gave to a call, of the one on the wire; another's id as it is."""
        if wire is None or (found := self._ids.get(wire)) is None:
            return wire
        answer, at = found
        return (answer.message.tool_calls[at].id if at >= 0 else None) or wire

    def answer(self, identifier: str) -> Answer | None:
        """The answer that an id was handed out for; None where it was not, or is forgotten."""
        found = self._ids.get(identifier)
        return None if found is None else found[0]

    def remember(
        self, said: Said, call: Call, prefix: str, further: Iterable[str] = (), shown: Message | None = None
    ) -> Answer:
        """What the model said, to be known when it comes back. The same answer again is the one that is known.

        `prefix` is what ids of calls begin with, `further` are other ids that are handed out for it. `shown` is the
        message as the client will read it, where the dialect cannot say what the model said word for word.
        """
        if (known := self._answers.get(said.id)) is not None:
            return known
        message = Message.of(said.message)
        shown = shown or said.shown
        key = digest(message)
        self._messages.put(key, message, _weight(message))
        before = call.previous
        answer = Answer(
            id=said.id,
            message=message,
            text_key=text_key(shown or message),
            behind=call.mark,
            mark=hash((call.mark, hash(key))),
            length=len(call.messages) + 1,
            seal=seal(said.id, message.reasoning_content or ""),
            call_ids=tuple(f"{prefix}_{said.id}_{at}" for at in range(len(message.tool_calls))),
            shown=shown or message,
            earlier=before,
            asked=tuple(call.messages[before.length if before is not None else 0 :]),
            instructions=call.instructions,
        )
        self._answers[said.id] = answer
        for at, identifier in enumerate(answer.call_ids):
            self._ids[identifier] = answer, at
        for identifier in (answer.seal, *further):
            self._ids[identifier] = answer, -1
        place = answer.behind, answer.text_key
        self._texts[place] = (*self._texts.get(place, ()), answer)[:_SAME_TEXT]
        if self._missed.pop(place, False):  # now it has said it, and what was known of that text is so no more
            self._runs.clear()
            self._beginnings = Beginnings()
        return answer

    def _take(self, run: Sequence[Known], call: Call) -> None:
        """Puts what the model said, or is said to have said, behind a call's messages."""
        key = (call.mark, *[mark for item in run for mark in item.marks])
        if (found := self._runs.get(key)) is None:
            found = self._runs[key] = self._resolved(run, call.mark)
        for message, mark, answer, restored in found:
            behind = call.mark
            call.messages.append(message)
            call.mark = hash((behind, mark))
            call.restored += restored
            if answer is not None and answer.behind == behind and answer.length == len(call.messages):
                call.previous = answer

    def _resolved(self, run: Sequence[Known], behind: int) -> list[_Resolved]:
        """The messages of a run of the assistant's items."""
        found, rest = list[_Resolved](), run
        while rest:
            resolved, count = self._first(rest, behind)
            rest = rest[count:]
            if resolved is not None:
                behind = hash((behind, resolved[1]))
                found.append(resolved)
        return found

    def _first(self, items: Sequence[Known], behind: int) -> tuple[_Resolved | None, int]:
        """(the message that items begin with, how many are its): as many as are an answer, else as they came."""
        looks = self._one_answers(items)
        for count in (looks, *range(min(len(items), _MOST_PARTS), 0, -1)):
            came, keys = _joined(items[:count])
            if (answer := self._same(came, keys, behind)) is not None:
                restored = bool(answer.message.reasoning_content) and not came.reasoning_content
                return (answer.message, hash(digest(answer.message)), answer, restored), count
        came, keys = _joined(items[:looks])
        if items[0].begins and _is_silent(came) and not any(map(self.answer, keys)):
            return None, looks  # reasoning that another model sealed: here it says nothing
        return self._as_it_came(came, keys), looks

    def _one_answers(self, items: Sequence[Known]) -> int:
        """How many items are one answer's by their looks: another begins with reasoning, or with another one's id."""
        owner = None
        for at, item in enumerate(items):
            theirs = next((answer for key in item.keys if (answer := self.answer(key)) is not None), None)
            other = theirs is not None and owner is not None and theirs is not owner
            if at and (other or (item.begins and any(map(_is_aloud, items[:at])))):
                return at
            owner = owner or theirs
        return len(items)

    def _same(self, came: Message, keys: Sequence[str], behind: int) -> Answer | None:
        """The answer that came back, by an id of its own, else by what it says at its place."""
        key = text_key(came)
        by_id = (answer for each in keys if (answer := self.answer(each)) is not None)
        there = self._texts.get((behind, key), ())
        found = next((answer for answer in (*by_id, *there) if is_same(came, key, answer)), None)
        if found is None:
            self._missed[behind, key] = True
        return found

    def _as_it_came(self, came: Message, keys: Sequence[str]) -> _Resolved:
        """A message of the client's own; what it kept of ours under an id is ours."""
        sealed = next((answer for each in keys if (answer := self.answer(each)) and answer.seal == each), None)
        if sealed is not None and not came.reasoning_content:  # what is sealed says nothing to anybody else
            came = msgspec.structs.replace(came, reasoning_content=sealed.message.reasoning_content)
        if came.tool_calls:
            came = msgspec.structs.replace(came, tool_calls=tuple(map(self._own, came.tool_calls)))
        known = self.known([came])
        return known.messages[0], known.marks[0], None, False

    def _own(self, call: ToolCall) -> ToolCall:
        return msgspec.structs.replace(call, id=self.own_call_id(call.id))


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Raises DialectError for what cannot be read or written, such as a value that is nested too deeply."""
    try:
        yield
    except MessageError as error:
        raise DialectError(400, str(error)) from None
    except RecursionError:
        raise DialectError(400, "the request is nested too deeply") from None


def _joined(items: Sequence[Known]) -> tuple[Message, list[str]]:
    """The one message of several items, and the ids in them."""
    came = joined([message for item in items for message in item.messages])
    return came, [key for item in items for key in item.keys]


def _is_aloud(item: Known) -> bool:
    """Whether an item of the assistant's says more than reasoning."""
    return any(message.content or message.tool_calls for message in item.messages)


def _weight(message: Message) -> int:
    """Characters that a message holds, images and audio among them."""
    if message.is_multimodal:
        return len(msgspec.json.encode(message.content))
    calls = sum(len(call.function.arguments) for call in message.tool_calls)
    return len(message.text) + len(message.reasoning_content or "") + calls


def _is_silent(message: Message) -> bool:
    return not (message.content or message.reasoning_content or message.tool_calls)


class _Kept(Generic[V]):
    """What was used lately, by count and by bytes: what is in neither the younger nor the older half is forgotten."""

    def __init__(self, count: int, size: int) -> None:
        self._count, self._size = max(1, count // 2), size // 2
        self._young: dict[bytes, tuple[V, int]] = {}
        self._old: dict[bytes, tuple[V, int]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: bytes) -> V | None:
        if (found := self._young.get(key)) is not None:
            return found[0]
        if (found := self._old.pop(key, None)) is None:
            return None
        self.put(key, *found)
        return found[0]

    def put(self, key: bytes, value: V, size: int) -> None:
        if self._young and (len(self._young) >= self._count or self._bytes + size > self._size):
            self._old, self._young, self._bytes = self._young, {}, 0
        self._young[key] = value, size
        self._bytes += size

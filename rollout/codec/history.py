"""What a template can see of earlier messages when it writes the next turn, and the short head that stands for them.

A bridge renders a few words in place of the conversation so far, which is right as long as the template writes the
same behind both. Some look back: `/no_think` in the system message decides the generation prompt of every later turn
(SmolLM3, Nemotron), Mistral's puts the system message into the last user turn. So each message of the history is
tried: rendered before the stand-in, does it change what follows? One that does goes into the head, as it is:

    history   system "Be brief. /no_think", user "hi", assistant "yo", user "why?", assistant "because"
    head      system "Be brief. /no_think", user "."

Messages in which there is nothing that the template looks for (`rollout.codec.source`) are all alike to it: one word
in their role is tried for all of them. A server's template cannot be read, so there each message is tried, and what the
model said last, too.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Collection, Sequence

import msgspec

from rollout.chat.canonical import digest
from rollout.chat.messages import Message
from rollout.codec import stand_in
from rollout.codec.heads import SHORT, behind, last_rounds, part_types, rough, short_head, shortened
from rollout.codec.said import follows, follows_behind
from rollout.codec.stand_in import HEAD, Conversation, Head, NotExtendable, NotRendered, Shape, Steps
from rollout.codec.types import Previous
from rollout.codec.walked import Walked, and_found, kind_of
from rollout.memo import Memo

#: Kinds of messages that are remembered for each length of a history.
_KINDS_KEPT = 256

#: How often a proof is tried: a clock in the prompt may tick between two of its renderings.
_TRIES = 2

_SAID = "the template writes another text behind what the assistant said than behind other words"


class Unprovable(msgspec.Struct, frozen=True):
    """Why a shape cannot be proved. Tried again the next day: it may have been midnight."""

    reason: str
    day: datetime.date


class Proved(msgspec.Struct, frozen=True):
    """A shape that was proved."""

    shape: Shape
    number: int
    """Its name in what is remembered of it: the key by which it was found is long to hash."""


_NOTHING = Walked()


class ShapeCache:
    """The shapes that were proved, and those that cannot be, and which messages a template sees: each is asked once.

    `finds` tells what a template may find in a text, as `Source.finds` does; None where nobody can know.
    """

    def __init__(self, size: int = 256, finds: Callable[[str], object] | None = None) -> None:
        self._finds = finds
        self._shapes = Memo[object, Proved | Unprovable](size)
        self._numbers = itertools.count()
        self._ids_matter = Memo[object, bool](size)
        self._first_ids = Memo[object, tuple[str, ...]](size)
        """The call ids with which a shape was proved, by their form."""
        self._seen = Memo[object, bool](4 * size)
        """Whether a message of a history changes what follows."""
        self._said = Memo[object, bool](4 * size)
        """Whether the same follows behind what the model said as behind a stand-in."""
        self._heads = Memo[object, bool](size)
        """Whether a short head stands for a history."""
        self._walked = Memo[object, Walked](2 * size)
        self._wholes = Memo[object, bool](4 * size)
        """That another follows behind a whole history than behind a word."""
        self._proved_kinds = Memo[object, frozenset[object]](4 * size)
        """The kinds of messages that were in histories behind which the same follows as behind a word, by length."""
        self._before = Memo[object, list[int]](size)
        """What stood before the close last time."""

    def steps(
        self, previous: Previous, tail: Sequence[Message], context_key: bytes, stop_ids: Collection[int]
    ) -> Steps[list[int]]:
        """The steps to a bridge, the proof of its shape included where it is new. Raises NotExtendable."""
        key, shape, head = yield from self._found(previous, tail, context_key, stop_ids)
        short = head is not previous.history
        ids = yield from self._printed_ids(previous.message, tail, context_key)
        head_key = (key, ids, *(() if head is HEAD else map(digest, head))) if short else None
        known = self._before.get(head_key) if short else None
        end = previous.completion_ids[-1] if previous.completion_ids else None
        rest, before = yield from stand_in.bridge(previous.message, tail, shape, end, stop_ids, head, known)
        if short and before is not known:
            self._before[head_key] = before
        return rest

    def looks_back(
        self, previous: Previous, tail: Sequence[Message], context_key: bytes, stop_ids: Collection[int]
    ) -> Steps[bool]:
        """The steps to whether what follows depends on the history. Raises NotExtendable."""
        _, _, head = yield from self._found(previous, tail, context_key, stop_ids)
        return head is not HEAD

    def ids_matter(self, previous: Message | None, tail: Sequence[Message], context_key: bytes) -> Steps[bool]:
        """The steps to whether a tail's call ids change what is written; asked once for each shape."""
        if not stand_in.call_ids(previous, tail):
            return False
        key = (context_key, stand_in.shape_key(previous, tail))
        if key not in self._ids_matter:
            self._ids_matter[key] = yield from stand_in.ids_matter(previous, tail)
        return self._ids_matter[key]

    def _found(
        self, previous: Previous, tail: Sequence[Message], context_key: bytes, stop_ids: Collection[int]
    ) -> Steps[tuple[object, Shape, Head]]:
        """What is proved of a tail, and what stands for its history. Raises NotExtendable."""
        ids = yield from self._printed_ids(previous.message, tail, context_key)
        if ids:
            previous, tail, ids = self._with_first_ids(previous, tail, ids, context_key)
        key, shape = yield from self._proved(previous, tail, context_key, stop_ids, ids)
        yield from self._check_said(key, shape, previous, tail)
        yield from self._check_said_behind(key, shape, previous, tail)
        if (yield from self._counts_images(key, shape, previous, tail)):
            return key, shape, previous.history
        return key, shape, (yield from self._head(key, shape, previous, tail))

    def _printed_ids(
        self, previous: Message | None, tail: Sequence[Message], context_key: bytes
    ) -> Steps[tuple[str, ...]]:
        """A tail's call ids, where they change what is written."""
        matter = yield from self.ids_matter(previous, tail, context_key)
        return stand_in.call_ids(previous, tail) if matter else ()

    def _with_first_ids(
        self, previous: Previous, tail: Sequence[Message], ids: tuple[str, ...], context_key: bytes
    ) -> tuple[Previous, Sequence[Message], tuple[str, ...]]:
        """The same with the first call ids of their form that came: what is proved of those holds for these.

        Where a template prints ids, each call's is new, and a proof for each of them would cost every turn its own.
        """
        name = (context_key, stand_in.shape_key(previous.message, tail), tuple(map(stand_in.id_form, ids)))
        if name not in self._first_ids:
            self._first_ids[name] = ids
        if (first := self._first_ids[name]) == ids:
            return previous, tail, ids
        said, tail = stand_in.with_ids(previous.message, tail, dict(zip(ids, first, strict=True)))
        return msgspec.structs.replace(previous, message=said), tail, first

    def _proved(
        self,
        previous: Previous,
        tail: Sequence[Message],
        context_key: bytes,
        stop_ids: Collection[int],
        ids: tuple[str, ...],
    ) -> Steps[tuple[object, Shape]]:
        """The proof of a tail's shape; `ids` are those of its calls, where they matter."""
        key = (context_key, stand_in.shape_key(previous.message, tail), ids, tuple(stop_ids))
        found = self._shapes.get(key)
        if found is None or (isinstance(found, Unprovable) and found.day != datetime.date.today()):
            for _ in range(_TRIES):
                try:
                    shape = yield from stand_in.prove_shape(previous.message, tail, stop_ids)
                    found = Proved(shape, next(self._numbers))
                    break
                except NotExtendable as error:
                    found = Unprovable(str(error), datetime.date.today())
            assert found is not None, "it was tried"
            self._shapes[key] = found
        if isinstance(found, Unprovable):
            raise NotExtendable(found.reason)
        return found.number, found.shape

    def _check_said(self, key: object, shape: Shape, previous: Previous, tail: Sequence[Message]) -> Steps[None]:
        """Proves that what follows is the same behind what the model really said. Raises NotExtendable.

        Where that has what the stand-in lacks: reasoning, text beside calls, no text at all, or a text in which the
        template may find something. In what a server's may find something nobody knows: it is asked about each text.
        """
        said = previous.message
        if said is None:
            return
        holds = self._holds(said) if self._finds is not None else bool(said.text)
        speaks_alike = bool(said.text) is (shape.form != "calls")
        if said.reasoning_content is None and not holds and speaks_alike:
            return
        if not said.tool_calls and any(message.role == "tool" for message in tail):
            return  # calls that only the environment could read: what was read says nothing of what follows
        name = (key, kind_of(said, holds) if self._finds is not None else digest(said))
        if name not in self._said:
            try:
                self._said[name] = yield from follows(said if holds else shortened(said), shape, tail)
            except NotRendered:  # as of a history
                return
        if not self._said[name]:
            raise NotExtendable(_SAID)

    def _check_said_behind(self, key: object, shape: Shape, previous: Previous, tail: Sequence[Message]) -> Steps[None]:
        """The same behind the whole history, where the template finds something in an answer. Raises NotExtendable."""
        said, history = previous.message, previous.history
        if said is None or said.tool_calls or self._finds is None or not history:
            return
        if not (holds := self._holds(said)):
            return
        walked = yield from self._walk(key, shape, previous, tail)
        name = (key, kind_of(said, holds), rough(walked), walked.kinds, walked.found)
        if name not in self._said:
            turn = stand_in.stand_in_turn(said, tail, shape.form)
            try:
                self._said[name] = yield from follows_behind(history, said, turn, shape, tail)
            except NotRendered:
                return
        if not self._said[name]:
            raise NotExtendable(_SAID)

    def _counts_images(self, key: object, shape: Shape, previous: Previous, tail: Sequence[Message]) -> Steps[bool]:
        """Whether a tail's images are numbered, as Qwen-VL's `add_vision_id` does, behind those of the history."""
        if not any(message.is_multimodal for message in tail):
            return False
        earlier = next((message for message in previous.history if message.is_multimodal), None)
        if earlier is None:
            return False
        name = (key, "images", tuple(map(part_types, tail)))
        if name not in self._seen:
            words = [stand_in.stand_in_turn(previous.message, tail, shape.form, word) for word in stand_in.WORDS]
            try:
                first = yield Conversation([*HEAD, words[0], *tail])
                second = yield Conversation([*HEAD, words[1], *tail])
                numbered = yield Conversation([*behind(earlier, first=False), words[0], *tail])
            except NotRendered:
                return True
            following = first[stand_in.common_prefix(first, second) :]
            self._seen[name] = not following or numbered[-len(following) :] != following
        return self._seen[name]

    def _head(self, key: object, shape: Shape, previous: Previous, tail: Sequence[Message]) -> Steps[Head]:
        """What stands for the history: nearly always a word."""
        history = previous.history
        if not history:
            return HEAD
        walked = yield from self._walk(key, shape, previous, tail)
        if not walked.seen:
            return HEAD if (yield from self._is_as_behind_a_word(key, walked, shape, previous, tail)) else history
        head = short_head(history, walked.seen) or last_rounds(history, walked, self._finds)
        name = (key, rough(walked), walked.kinds, walked.pairs, walked.found)
        if head is not None and (yield from self._stands_for(name, head, shape, previous, tail)):
            return head
        return history

    def _walk(self, key: object, shape: Shape, previous: Previous, tail: Sequence[Message]) -> Steps[Walked]:
        """What is seen of a history. The next turn's has a few messages more, and only those are looked at."""
        history = previous.history
        name = _walked_name(key, history)
        known = self._walked.get(name, _NOTHING)
        if known.messages != history[: len(known.messages)]:  # the same objects mostly, compared at once
            known = _NOTHING
        if len(known.messages) == len(history):
            return known
        seen, kinds, pairs, by_text, found = [*known.seen], {*known.kinds}, {*known.pairs}, known.by_text, known.found
        last = known.messages[-1] if known.messages else None
        before = None if last is None else kind_of(last, self._holds(last))
        for at in range(len(known.messages), len(history)):
            message, holds = history[at], self._holds(history[at])
            kind = kind_of(message, holds)
            kinds.add(kind)
            pairs.add((before, kind))
            before, found = kind, and_found(found, message, holds)
            if (yield from self._is_seen(key, shape, message, holds, at == 0, previous, tail)):
                seen.append(message)
                by_text |= message.role == "tool" and (yield from self._is_read(key, shape, message, previous, tail))
        known = Walked(
            messages=list(history),
            seen=seen,
            kinds=frozenset(kinds),
            pairs=frozenset(pairs),
            calls=known.calls + sum(len(message.tool_calls) for message in history[len(known.messages) :]),
            by_text=by_text,
            found=found,
            refused=known.refused,
        )
        self._walked[name] = known
        return known

    def _holds(self, message: Message) -> object:
        """What the template may find in a message's text; None where nobody can know."""
        return None if self._finds is None else self._finds(message.text)

    def _is_as_behind_a_word(
        self, key: object, walked: Walked, shape: Shape, previous: Previous, tail: Sequence[Message]
    ) -> Steps[bool]:
        """Whether the same follows behind a whole history as behind a word.

        No message of it is seen, but a template may count them, or look at the model's own. So a history is rendered
        whole, its long texts shortened, once for each length (each double of a long one) and for what kinds of messages
        are in it that were in none before.
        """
        kinds, found = walked.kinds, walked.found if self._finds is not None else b""
        name = (key, rough(walked), found)
        proved = self._proved_kinds.get(name, frozenset())
        if kinds <= proved or walked.refused:
            return True
        if (name, kinds) not in self._wholes:
            turn = stand_in.stand_in_turn(previous.message, tail, shape.form)
            try:
                whole = [m if self._holds(m) else shortened(m) for m in previous.history]
                ids = yield Conversation([*whole, turn, *stand_in.with_words(tail)])
                same = ids[-len(shape.following) :] == shape.following
            except NotRendered:  # a message that the template takes no more: what is there was sampled, and stands
                self._walked[_walked_name(key, previous.history)] = msgspec.structs.replace(walked, refused=True)
                return True
            if same:
                self._proved_kinds[name] = kinds | proved if len(proved) < _KINDS_KEPT else kinds
                return True
            self._wholes[name, kinds] = False
        return False

    def _is_seen(
        self,
        key: object,
        shape: Shape,
        message: Message,
        holds: object,
        first: bool,
        previous: Previous,
        tail: Sequence[Message],
    ) -> Steps[bool]:
        """Whether a message of the history changes what the template writes behind the turn."""
        if message.role == "assistant":
            return False
        word = Message(message.role, ".")
        if (yield from self._changes(key, shape, word, first, previous, tail)):
            return True
        if holds is False:
            return False
        return (yield from self._changes(key, shape, message, first, previous, tail))

    def _changes(
        self, key: object, shape: Shape, message: Message, first: bool, previous: Previous, tail: Sequence[Message]
    ) -> Steps[bool]:
        """Whether what the template writes behind the turn is another behind a message. Asked once for each text."""
        name = (key, first, message.role, message.text if len(message.text) < SHORT else digest(message))
        if name not in self._seen:
            turn = stand_in.stand_in_turn(previous.message, tail, shape.form)
            try:
                ids = yield Conversation([*behind(message, first), turn, *stand_in.with_words(tail)])
                self._seen[name] = ids[-len(shape.following) :] != shape.following
            except NotRendered:  # the whole history may be taken, where the message stands in its own place
                self._seen[name] = True
        return self._seen[name]

    def _is_read(
        self, key: object, shape: Shape, message: Message, previous: Previous, tail: Sequence[Message]
    ) -> Steps[bool]:
        """Whether the template may find something in a tool's result, beside that there is one."""
        if self._finds is not None:
            return bool(self._finds(message.text))
        name, turns = (key, "read", digest(message)), []
        if name not in self._seen:
            for word in stand_in.WORDS:
                turn = stand_in.stand_in_turn(previous.message, tail, shape.form, word)
                turns.append([turn, *stand_in.with_words(tail)])
            real = msgspec.structs.replace(message, tool_call_id=None)
            try:
                if (following := self._before.get((key, "a word"))) is None:
                    word_only = behind(msgspec.structs.replace(real, content="."), first=False)
                    one = yield Conversation([*word_only, *turns[0]])
                    other = yield Conversation([*word_only, *turns[1]])
                    self._before[key, "a word"] = following = one[stand_in.common_prefix(one, other) :]
                ids = yield Conversation([*behind(real, first=False), *turns[0]])
                self._seen[name] = not following or ids[-len(following) :] != following
            except NotRendered:
                self._seen[name] = True
        return self._seen[name]

    def _stands_for(
        self, key: object, head: Head, shape: Shape, previous: Previous, tail: Sequence[Message]
    ) -> Steps[bool]:
        """Whether the same follows behind a short head and behind the whole history."""
        name = (key, *map(digest, head))
        if name not in self._heads:
            one, other = (stand_in.stand_in_turn(previous.message, tail, shape.form, word) for word in stand_in.WORDS)
            probe = stand_in.with_words(tail)
            try:
                first = yield Conversation([*head, one, *probe])
                second = yield Conversation([*head, other, *probe])
                whole = yield Conversation([*previous.history, one, *probe])
            except NotRendered:
                self._heads[name] = False
                return False
            following = first[stand_in.common_prefix(first, second) :]
            self._heads[name] = bool(following) and whole[-len(following) :] == following
        return self._heads[name]


def _walked_name(key: object, history: Sequence[Message]) -> object:
    """A conversation's name: the first thing that the model said is its own, what stands before it a whole run's."""
    return key, id(next((message for message in history if message.role == "assistant"), history[0]))

"""What a renderer writes around the texts of a tail, learnt from watching it: a turn then costs its texts' encoding.

A hand-written renderer makes the same tokens around every user message of a conversation, at several times the cost of
encoding the message. Which texts it encodes is seen by its tokenizer, which is ours. So it is watched with stand-in
texts, and what it wrote is a pattern if it predicts what the renderer writes for other texts: with spaces around them,
of several lines, of digits, of JSON; and if it writes the same whatever the model said between its markers: how a turn
that was cut off is closed depends on those. A renderer that strips a text, or reads it, has none, and neither has a
conversation with `<` in it: there the renderer is asked each time.

An example. Behind "Yes.<|im_end|>" the Qwen3 family is asked to add the user message "Quartz0muffin", and writes

    \\n<|im_start|>user\\n Quartz0muffin <|im_end|>\\n<|im_start|>assistant\\n

of which its tokenizer encoded "Quartz0muffin" by itself. So the pattern is four ids, the text's own, and five ids. It
is compared with the family on ten other texts, and on ten other things that the model may have said; from then on the
tail of "And why?" is those nine ids around one call of the tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence

import msgspec

from rollout.chat.messages import Message
from rollout.codec.literal import LiteralTokenizer

#: Words that stand for the messages' texts while the renderer is watched.
_WORD = "Quartz{}muffin"

#: What a pattern must predict. Renderers strip, split lines, and read JSON.
_PROBES = ("plain", "  x ", "\n\na\n", "a\nb\n\n- c", "12 345", '{"a": 1}', "[1, 2]", "null", "3.5", "Grüße 👋")

#: What a model may have said without a pattern's knowing: the same, nothing, space, and markers that it spelled out in
#: ordinary tokens, here at the place where they are cut.
_SAID = (*((text,) for text in (*_PROBES, "", " ", "\n\n")), ("<", "think>"), ("</", "think>"), ("<", "tool_call>"))

#: Renderers look for tags in what is said (`<tool_response>`, `<think>`).
_READ_BY_RENDERERS = "<"

#: And for words by which a user switches reasoning: GLM's adds `/nothink` to texts that do not end with it.
_SWITCH = re.compile("/(?:no_?)?think", re.IGNORECASE)


class Slot(msgspec.Struct, frozen=True):
    """Where a message's text goes, with what is encoded together with it."""

    message: int
    before: str
    after: str


class Pattern(msgspec.Struct, frozen=True):
    """Ids and slots, in their order."""

    pieces: Sequence[Sequence[int] | Slot]

    def filled(self, texts: Sequence[str], encode: Callable[[str], list[int]]) -> list[int]:
        """The ids for these texts."""
        out: list[int] = []
        for piece in self.pieces:
            out += encode(f"{piece.before}{texts[piece.message]}{piece.after}") if isinstance(piece, Slot) else piece
        return out


def texts_of(messages: Sequence[Message]) -> list[str] | None:
    """The texts of messages that have nothing else that a renderer might read; None for others."""
    texts = []
    for message in messages:
        text = message.content
        if not isinstance(text, str) or _READ_BY_RENDERERS in text or message.tool_calls or message.extra:
            return None
        texts.append(text)
    return texts


def has_switch(text: str) -> bool:
    """Whether a text has a word in it that renderers may look for: what they write around others says nothing of it."""
    return _SWITCH.search(text) is not None


def learn(
    tokenizer: LiteralTokenizer, messages: Sequence[Message], make: Callable[[Sequence[Message]], list[int]]
) -> Pattern | None:
    """The pattern of what `make` writes for messages such as these; None where it has none.

    Raises what `make` raises.
    """
    words = [_WORD.format(at) for at in range(len(messages))]
    with tokenizer.watched() as encoded:
        ids = make(_with_texts(messages, words))
    pattern = _pattern(ids, encoded, words)
    if pattern is None:
        return None
    for probe in probed(messages):
        if pattern.filled([message.text for message in probe], tokenizer.plain_ids) != make(probe):
            return None
    return pattern


def probed(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """The messages with texts that renderers and templates treat in ways of their own.

    They differ from message to message, so that a text in another's place is found out.
    """
    for at in range(len(_PROBES)):
        yield _with_texts(messages, [_PROBES[(at + number) % len(_PROBES)] for number in range(len(messages))])


def other_completions(
    tokenizer: LiteralTokenizer, completion_ids: Sequence[int], stops: Collection[int]
) -> Iterator[list[int]]:
    """The completion with other words between its markers: what a renderer writes behind it may not depend on them.

    Where it starts with a marker it still does, and where it ends with a stop token, too.
    """
    marks = [index for index in completion_ids if index in stops or tokenizer.markers_in([index])]
    starts = bool(marks) and completion_ids[0] == marks[0]
    ends = completion_ids[-1] in stops
    for pieces in _SAID:
        words = [index for piece in pieces for index in tokenizer.plain_ids(piece)]
        said = [] if starts else words or tokenizer.plain_ids("x")
        for at, mark in enumerate(marks, 1):
            said = [*said, mark, *(() if ends and at == len(marks) else words)]
        yield said


def _with_texts(messages: Sequence[Message], texts: Sequence[str]) -> list[Message]:
    return [msgspec.structs.replace(message, content=text) for message, text in zip(messages, texts, strict=True)]


def _pattern(ids: list[int], encoded: Sequence[tuple[str, list[int]]], words: Sequence[str]) -> Pattern | None:
    """Finds what was encoded in what was written; the tokens in between were written as they are."""
    pieces: list[list[int] | Slot] = []
    at, found = 0, 0
    for text, part in encoded:
        there = [word for word in words if word in text]
        if not there:
            continue
        start = _position(ids, part, at)
        if len(there) > 1 or start is None or text.count(there[0]) > 1:
            return None
        before, _, after = text.partition(there[0])
        pieces += [ids[at:start], Slot(words.index(there[0]), before, after)]
        at, found = start + len(part), found + 1
    return Pattern([*pieces, ids[at:]]) if found == len(words) else None


def _position(ids: list[int], part: list[int], start: int) -> int | None:
    """Where `part` first stands in `ids` from `start` on."""
    length = len(part)
    return next((at for at in range(start, len(ids) - length + 1) if ids[at : at + length] == part), None)

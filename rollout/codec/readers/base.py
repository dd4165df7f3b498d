"""What a reader is, and the one that all formats here are made of."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import Protocol

import msgspec

from rollout.chat.messages import Message
from rollout.codec.readers.pieces import Piece, Sampled, assembled
from rollout.codec.readers.reasoning import THINK, Tags, split_reasoning
from rollout.door import error_text, well_formed
from rollout.log import get_logger

_log = get_logger(__name__)


class Reader(Protocol):
    """Reads what one kind of model writes. Has no state: any number of threads may share it."""

    @property
    def name(self) -> str:
        """As `--reader` takes it."""
        ...

    def read(self, sampled: Sampled) -> Message:
        """The assistant's message. Never raises for what a model sampled."""
        ...


def read(reader: Reader, sampled: Sampled) -> Message:
    """What a reader reads; the text itself where a reader raises, which would be a bug of ours."""
    try:
        return reader.read(sampled)
    except Exception as error:
        _log.warning("parser_raised", error=f"{type(error).__name__}: {error_text(error)}", exc_info=error)
        return Message("assistant", well_formed(sampled.text) or None)


def number_calls(message: Message, first: int) -> Message:
    """Gives calls without an id one: nine letters and digits, as Mistral's templates demand, counted from `first`."""
    if all(call.id for call in message.tool_calls):
        return message
    calls = tuple(
        call if call.id else msgspec.structs.replace(call, id=f"call{first + i:05d}")
        for i, call in enumerate(message.tool_calls)
    )
    return msgspec.structs.replace(message, tool_calls=calls)


class Format:
    """A reader that cuts the text into pieces: reasoning first, then what `said` makes of the rest."""

    name: str
    """As `--reader` takes it."""
    openers: tuple[str, ...] = ()
    """What begins a call in this format, unmistakably; none where calls have no marker."""
    signs: tuple[str | tuple[str, ...], ...] = ()
    """What tells this format where it stands in a chat template, or is a token of the model's; of several in one, all
    must be there."""
    tags: tuple[Tags, ...] = (THINK,)
    """What may stand around reasoning."""
    gap: int = 1
    """Newlines that templates of this format write between text and calls, at most."""

    def is_told_by(self, there: Container[str]) -> bool:
        """Whether a template's text, or a model's tokens, have a sign of this format."""
        each = ([sign] if isinstance(sign, str) else sign for sign in self.signs)
        return any(all(part in there for part in parts) for parts in each)

    def is_form_of(self, written: str) -> bool:
        """Whether a template that writes a call so may be one of this format; others read more than they are told."""
        return True

    def __repr__(self) -> str:
        return f"<reader {self.name}>"

    def read(self, sampled: Sampled) -> Message:
        """See `Reader`."""
        if not sampled.text.isascii():
            sampled = msgspec.structs.replace(sampled, text=well_formed(sampled.text))
        return assembled(self.pieces(sampled), offered=bool(sampled.tools), gap=self.gap)

    def pieces(self, sampled: Sampled) -> Iterator[Piece]:
        """Cuts the text. The pieces' slices, one after the other, are the text."""
        reasoning, text = split_reasoning(sampled, self.tags, self.openers)
        yield from reasoning
        yield from self.said(text, sampled)

    def said(self, text: str, sampled: Sampled) -> Iterable[Piece]:
        """Cuts what follows the reasoning."""
        raise NotImplementedError

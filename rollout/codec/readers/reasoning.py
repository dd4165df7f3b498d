"""Reasoning between tags, at the beginning of a turn: `<think>` ... `</think>` and its kin.

The prompt may have opened it already (DeepSeek-R1, Qwen3's thinking models). Where it is never closed, the opener of a
call ends it, as inference servers have it; in a turn without one all of it is reasoning. Templates write a newline
inside each tag and up to two behind the last: these are the format's, all other whitespace is the model's.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from rollout.codec.readers.pieces import Piece, Sampled

#: How many newlines templates write between reasoning and what follows it.
_GAP = 2


class Tags(msgspec.Struct, frozen=True):
    """What stands around reasoning."""

    open: str
    close: str
    newlines: int = 1
    """How many newlines templates write inside each, at most."""
    told_by_close: bool = True
    """Whether the closing tag alone tells that there was reasoning, where the prompt is not known."""


THINK = Tags("<think>", "</think>")


def split_reasoning(sampled: Sampled, tags: Sequence[Tags], call_openers: Sequence[str]) -> tuple[list[Piece], str]:
    """The pieces of the reasoning that the turn begins with, and the text behind them."""
    text = sampled.text
    for tag in tags:
        start = _start(sampled, tag)
        if start is not None:
            break
    else:
        return [], text
    end, resumes = text.find(tag.close, start), 0
    if end >= 0:
        resumes = end + len(tag.close)
    else:
        found = [at for opener in call_openers if (at := text.find(opener, start)) >= 0] if sampled.tools else []
        end = resumes = min(found, default=len(text))
    if end == len(text) and not text[start:].strip():  # nothing was thought, or said: the environment sees what was
        return [Piece("mark", text[:start])] if start else [], text[start:]
    body_end = end
    while end < len(text) and start < body_end > end - tag.newlines and text[body_end - 1] == "\n":
        body_end -= 1
    resumes = _after_newlines(text, resumes, _GAP)
    pieces = [
        Piece("mark", text[:start]),
        Piece("reasoning", text[start:body_end]),
        Piece("mark", text[body_end:resumes]),
    ]
    return [piece for piece in pieces if piece.raw], text[resumes:]


def _start(sampled: Sampled, tag: Tags) -> int | None:
    """Where reasoning starts in the text; None where the turn does not begin with it."""
    text, before = sampled.text, sampled.prompt_end
    at = len(text) - len(text.lstrip())
    if text.startswith(tag.open, at):
        return _after_newlines(text, at + len(tag.open), tag.newlines)
    if before.rstrip().endswith(tag.open):
        return _after_newlines(text, 0, tag.newlines) if before.endswith(tag.open) else 0
    # Behind a prompt that nobody knows, reasoning that is closed was opened there.
    return 0 if not before and tag.told_by_close and tag.close in text else None


def _after_newlines(text: str, at: int, most: int) -> int:
    while most and text.startswith("\n", at):
        at, most = at + 1, most - 1
    return at

"""What a model may sample: canonical ids, the same text in other ids, bytes that are no text, and turns cut short."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from benchmarks.kit.families import Family
from benchmarks.kit.shapes import calls
from benchmarks.kit.tokenizers import HarmonyTokenizer
from rollout.chat.messages import Message
from rollout.request import FinishReason


class Sampled(msgspec.Struct, frozen=True):
    """A completion."""

    ids: list[int]
    finish_reason: FinishReason


class Kind(msgspec.Struct, frozen=True):
    """One way of completing: `make` changes canonical ids, or answers None where it does not apply."""

    name: str
    make: Callable[[Family, list[int], random.Random], Sampled | None]
    says: Callable[[Message], Message] = lambda message: message
    """What the model means to say instead of the shape's message."""
    by_chance: bool = False
    """Whether seeds differ."""
    is_said_whole: bool = False
    """Whether what is sampled is all that is meant."""


def kinds(stop_ids: Sequence[int]) -> list[Kind]:
    """Every kind, for a family with these stop tokens."""
    return [
        Kind("canonical", lambda family, ids, chance: _stopped(ids), is_said_whole=True),
        Kind(
            "other ids",
            lambda family, ids, chance: _stopped([*_respelled(family, ids[:-1], chance), ids[-1]]),
            by_chance=True,
            is_said_whole=True,
        ),
        Kind(
            "invalid UTF-8",
            lambda family, ids, chance: _stopped(_with_stray_bytes(family, ids, chance)),
            by_chance=True,
        ),
        Kind("cut in text", lambda f, ids, c: _cut(f, ids, "answer is forty"), _with_text),
        Kind("cut in reasoning", lambda f, ids, c: _cut(f, ids, "I look at"), _with_reasoning),
        Kind("cut in a call", lambda f, ids, c: _cut(f, ids, "Reyk"), lambda message: calls("weather")),
        *(Kind(f"stop {i + 1}", _ends_with(stop)) for i, stop in enumerate(stop_ids)),
        *(Kind(f"stop {i + 1} alone", _only(stop)) for i, stop in enumerate(stop_ids)),
        Kind("empty", lambda family, ids, chance: Sampled([], "length")),
    ]


def _stopped(ids: list[int]) -> Sampled:
    return Sampled(ids, "stop")


def _ends_with(stop: int) -> Callable[[Family, list[int], random.Random], Sampled]:
    return lambda family, ids, chance: Sampled([*ids[:-1], stop], "stop")


def _only(stop: int) -> Callable[[Family, list[int], random.Random], Sampled]:
    return lambda family, ids, chance: Sampled([stop], "stop")


def _with_text(message: Message) -> Message:
    return Message("assistant", "The answer is forty-two, I am sure.")


def _with_reasoning(message: Message) -> Message:
    return msgspec.structs.replace(message, reasoning_content="First I look at the question again.")


def _cut(family: Family, ids: list[int], until: str) -> Sampled | None:
    """The ids up to where `until` is there, in the middle of more."""
    for end in range(1, len(ids) - 1):
        if until in family.tokenizer.decode(ids[:end]):
            return Sampled(ids[:end], "length")
    return None


def _respelled(family: Family, ids: list[int], chance: random.Random) -> list[int]:
    """The same bytes in other ids: tokens cut in two at random."""
    tokenizer = family.tokenizer
    out: list[int] = []
    added = set(tokenizer.added_tokens_decoder)
    for index in ids:
        out += [index] if index in added else _cut_in_two(tokenizer, index, chance)
    assert tokenizer.decode(out) == tokenizer.decode(ids), "the same text"
    return out


def _cut_in_two(tokenizer: Any, index: int, chance: random.Random) -> list[int]:
    if isinstance(tokenizer, HarmonyTokenizer):
        text = tokenizer.decode([index])
        if len(text) < 2 or not text.isascii():
            return [index]
        at = chance.randrange(1, len(text))
        return [*tokenizer.encode(text[:at]), *tokenizer.encode(text[at:])]
    spelled, find = tokenizer.convert_ids_to_tokens(index), tokenizer.backend_tokenizer.token_to_id
    cuts = [(find(spelled[:at]), find(spelled[at:])) for at in range(1, len(spelled))]
    cuts = [cut for cut in cuts if None not in cut]
    return list(chance.choice(cuts)) if cuts else [index]


def _with_stray_bytes(family: Family, ids: list[int], chance: random.Random) -> list[int]:
    """Bytes that begin or go on with no character, at random places before the stop token."""
    out = list(ids)
    for byte in (0xFF, 0xC3, 0x80):
        out.insert(chance.randrange(len(out)), _byte_token(family.tokenizer, byte))
    return out


def _byte_token(tokenizer: Any, byte: int) -> int:
    if isinstance(tokenizer, HarmonyTokenizer):
        return tokenizer.byte_token(byte)
    find = tokenizer.backend_tokenizer.token_to_id
    if (piece := find(f"<0x{byte:02X}>")) is not None:
        return int(piece)
    # Byte-level BPE writes the bytes that are no printable character of Latin-1 as characters from U+0100 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in printable:
        return int(find(chr(byte)))
    return int(find(chr(0x100 + sum(1 for other in range(byte) if other not in printable))))

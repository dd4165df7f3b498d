"""Is the local tokenizer the server's? Asked once, before ids are sent to a model that may read them otherwise.

A fine-tune with tokens of its own, an older revision, or the name of another model: each id is then sent as it is here,
and means something else there, without any error. So the vocabulary's size is compared where the server says it, and
one conversation where the server can tokenize: its ids, and what they spell on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from rollout.chat.messages import Message, user
from rollout.codec.protocol import Codec
from rollout.codec.types import make_context
from rollout.errors import TransportError
from rollout.log import get_logger
from rollout.request import MessagePrompt
from rollout.transport import ServerInfo, Transport

#: Words, numbers, code, other scripts, spaces: what tokenizers cut in ways of their own. No marker of any family.
SAMPLE: Sequence[Message] = (
    user("Hello,  world! 12345 3.14 naïve Grüße 世界 👋\n\tdef f(x):\n        return x + 1  # don't\n\n\nEND"),
)

#: Tokens that a tokenizer may have beyond what its model takes: Gemma's text models have one for images.
_SPARE = 64

#: Ids of which each is asked for, to name the first that differs.
_ASKED = 64

#: Characters shown on each side of where two prompts part.
_AROUND = 40

_log = get_logger(__name__)


class Difference(msgspec.Struct, frozen=True):
    """What is not the same here and there."""

    of: Literal["tokenizer", "template"]
    """`template`: the tokens mean the same, and the prompts differ by the template alone."""
    detail: str


async def compare(
    codec: Codec, transport: Transport, info: ServerInfo, template_args: Mapping[str, Any]
) -> Difference | None:
    """What differs; None where nothing does, or where the server cannot be asked."""
    if info.vocab_size and codec.vocab_size and codec.vocab_size > info.vocab_size + _SPARE:
        detail = f"it has {codec.vocab_size} tokens, and the server's model {info.vocab_size}"
        return Difference("tokenizer", detail)
    if not info.can_tokenize:
        return None
    try:
        prompt = MessagePrompt(SAMPLE, template_args=template_args)
        theirs = await transport.tokenize(prompt, add_generation_prompt=True)
        try:
            ours = await codec.render(SAMPLE, make_context([], template_args))
        except Exception:  # a template of the model's own that takes no such conversation
            ours = None
        return None if ours == theirs else await _difference(codec, transport, ours, theirs)
    except TransportError as error:
        _log.warning("tokenizer_not_compared", error=str(error))
        return None


async def _difference(
    codec: Codec, transport: Transport, ours: Sequence[int] | None, theirs: Sequence[int]
) -> Difference | None:
    said = await transport.detokenize(theirs)
    here = await codec.decode(theirs)
    if here.strip() != said.strip():  # some servers strip what they decode
        return Difference("tokenizer", await _first(codec, transport, theirs))
    if ours is None:
        return None
    if (await codec.decode(ours)).strip() == here.strip():
        at = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        cut = f"from token {at} on: {list(ours[at : at + 4])} here, {list(theirs[at : at + 4])} on the server"
        return Difference("tokenizer", f"it cuts a text in another way than the server, {cut}")
    written = await codec.decode(ours)
    at = next((i for i, (a, b) in enumerate(zip(written, here, strict=False)) if a != b), min(len(written), len(here)))
    seen = slice(max(0, at - _AROUND), at + _AROUND)
    return Difference("template", f"the server writes {here[seen]!r}, and the local template {written[seen]!r}")


async def _first(codec: Codec, transport: Transport, ids: Sequence[int]) -> str:
    """The first id that spells something else on the server."""
    for token in list(dict.fromkeys(ids))[:_ASKED]:
        here, there = await codec.decode([token]), await transport.detokenize([token])
        if here.strip() != there.strip():
            return f"token {token} is {here!r} here and {there!r} on the server"
    return "the same ids spell another text on the server"

"""Two lists of ids for prompts with images: one placeholder an image, and what the model reads in its place.

Bridges extend the first, the logical ids, and they are what is sent: a server that is sent what it made of a
placeholder makes as many again of each. Samples have the second, the expanded ids, which are what was computed upon.

    logical    user: <image> what is this?          ids of the tree
    expanded   user: <image> x 16 what is this?     logical ids, each placeholder replaced by its `Expansion`

The two must be the same outside the images' places, which is checked with every answer. Pure.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from itertools import groupby

import msgspec

from rollout.chat.messages import images_of
from rollout.errors import MalformedReply
from rollout.request import Expansion, MessagePrompt, Reply, TokenPrompt
from rollout.tokens.trajectory import TokenIds, Trajectory, ids_array

#: What stands in a run folder's line for an image's address: see `rollout.store.pictures`.
RUN_IMAGE = re.compile(r"run-image:(?P<name>(?P<digest>[0-9a-f]{64})\.[a-z0-9]+);(?P<head>.*)", re.DOTALL)


def collapsed(ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> tuple[TokenIds, tuple[Expansion, ...]]:
    """The logical ids, and what each placeholder stood for: the first id of each span stays.

    Raises MalformedReply for spans that overlap, are empty, or lie outside the ids.
    """
    logical, expansions, end = ids_array(), list[Expansion](), 0
    for start, length in spans:
        if start < end or length < 1 or start + length > len(ids):
            raise MalformedReply(f"an image of {length} tokens at {start} cannot stand in a prompt of {len(ids)}")
        logical.extend(ids[end:start])
        runs = tuple((one, len(list(same))) for one, same in groupby(ids[start : start + length]))
        expansions.append(Expansion(len(logical), runs))
        logical.append(ids[start])
        end = start + length
    logical.extend(ids[end:])
    return logical, tuple(expansions)


def expanded(ids: TokenIds, expansions: Sequence[Expansion]) -> TokenIds:
    """What the model reads: the logical ids, each placeholder replaced by what stands for it."""
    if not expansions:
        return ids
    out, end = ids_array(), 0
    for one in expansions:
        out.extend(ids[end : one.at])
        for token, count in one.runs:
            out.extend(ids_array([token]) * count)
        end = one.at + 1
    out.extend(ids[end:])
    return out


def moved(expansions: Sequence[Expansion], by: int) -> tuple[Expansion, ...]:
    """The same, counted from elsewhere."""
    return tuple(Expansion(one.at + by, one.runs) for one in expansions)


def as_logical(reply: Reply, prompt: TokenPrompt | MessagePrompt, image_token: int | None) -> Reply:
    """The reply with the prompt's logical ids, and what the placeholders stood for.

    A server that says nothing of the images of messages, or takes ids without them, is left as it is: such a branch is
    not extended. Raises MalformedReply where ids that were sent with images came back otherwise than they went.
    """
    if isinstance(prompt, TokenPrompt):
        return _as_sent(reply, prompt) if prompt.images else reply
    spans, ids = reply.image_spans, reply.prompt_ids
    if not spans or ids is None or image_token is None:
        return reply
    images = images_of(prompt.messages)
    logical, expansions = collapsed(ids, spans)
    placeholders = [at for at, one in enumerate(logical) if one == image_token]
    # A text may have the placeholder's own id, and a model another for each kind of image.
    if images is None or len(images) != len(spans) or placeholders != [one.at for one in expansions]:
        return reply
    return msgspec.structs.replace(reply, prompt_ids=logical, expansions=expansions)


def _as_sent(reply: Reply, prompt: TokenPrompt) -> Reply:
    if reply.prompt_ids is None or reply.image_spans is None:
        raise MalformedReply("the server does not say what it put in the places of the prompt's images")
    if len(reply.image_spans) != len(prompt.images):
        raise MalformedReply(f"the server read {len(reply.image_spans)} images, and {len(prompt.images)} were sent")
    logical, expansions = collapsed(reply.prompt_ids, reply.image_spans)
    if logical != prompt.ids:
        at = next((at for at, (one, other) in enumerate(zip(prompt.ids, logical, strict=False)) if one != other), None)
        place = f"at position {at}" if at is not None else f"in length: {len(prompt.ids)} and {len(logical)}"
        raise MalformedReply(f"the server's prompt differs from the one that was sent outside its images, {place}")
    return msgspec.structs.replace(reply, prompt_ids=logical, expansions=expansions)


def expansions_of(tree: Trajectory, node: int) -> tuple[Expansion, ...]:
    """Those of a branch, counted from its beginning."""
    found: list[Expansion] = []
    length = 0
    for index in tree.path(node):
        found += moved(tree.nodes[index].expansions, length)
        length += len(tree.nodes[index].ids)
    return tuple(found)


class SampleImage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One image of a sample: the ids [start, start + length) stand for it."""

    start: int
    """-1 where the server did not say what it read for the image, so that nobody knows where that stands."""
    length: int
    image: str
    """`sha256:` and the digest of its bytes in hexadecimal; its address, where the conversation does not have them."""


def images_of_sample(tree: Trajectory, path: Sequence[int]) -> list[SampleImage]:
    """The images of a branch, by where they stand in its expanded ids; last those of which that is not known."""
    messages = (tree.nodes[index].message for index in path)
    urls = images_of([message for message in messages if message is not None]) or ()
    found: list[SampleImage] = []
    length = more = 0
    for index in path:
        node = tree.nodes[index]
        for one in node.expansions:
            name = image_name(urls[len(found)])
            found.append(SampleImage(start=length + one.at + more, length=one.length, image=name))
            more += one.length - 1
        length += len(node.ids)
    return [*found, *(SampleImage(start=-1, length=0, image=image_name(url)) for url in urls[len(found) :])]


def image_name(url: str) -> str:
    """What an image is called, wherever it is named: see `SampleImage.image`."""
    if named := RUN_IMAGE.fullmatch(url):  # read from a folder that does not have its bytes any more
        return f"sha256:{named['digest']}"
    data = image_bytes(url)
    return url if data is None else f"sha256:{hashlib.sha256(data).hexdigest()}"


def image_bytes(url: str) -> bytes | None:
    """The bytes that a `data:` address holds; None for another address, or what is no base64."""
    head, _, data = url.partition(",")
    if not head.startswith("data:") or not head.endswith(";base64"):
        return None
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return None

"""Images of a run's conversations, each kept once, by its digest, beside the lines that name it.

    images/HEX.png      the bytes of an image; HEX is their SHA-256

A message of a line has `run-image:HEX.png;data:image/png;base64` in the place of an image's address, and gets the
address back when the line is read. The members of a group are shown the same images, and a line would hold each of them
whole. An image is on the disk before the line that names it; where it cannot be, it stays in the line. Images elsewhere
(`http:`) are named by their address.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from rollout.chat.messages import Message
from rollout.log import get_logger
from rollout.memo import Memo
from rollout.store.config import write_whole
from rollout.tokens.images import image_bytes
from rollout.tokens.trajectory import Node

IMAGES = "images"

_MARK = "run-image:"

#: Names of images that are remembered to be there; others are looked for on the disk.
_REMEMBERED = 65_536

_log = get_logger(__name__)


class Pictures:
    """The images of a run folder, for what writes there."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / IMAGES
        self._kept = Memo[str, bool](_REMEMBERED)
        """Names of those that are there, as far as they are remembered: two images of one name are the same."""

    def __repr__(self) -> str:
        return f"<Pictures {self._path}: {len(self._kept)}>"

    def named(self, nodes: list[Node]) -> list[Node]:
        """The nodes with their images named, and those written that are new."""
        return _with_addresses(nodes, self._name)

    def move(self, folder: Path) -> None:
        """Goes on in another folder; what is named there already is looked for in the old one, and may be gone."""
        self._path, self._kept = folder / IMAGES, Memo[str, bool](_REMEMBERED)

    def _name(self, url: str) -> str:
        data = image_bytes(url)
        head = url.partition(",")[0]
        if data is None or _address(head, data) != url:  # base64 in another form than ours would not come back
            return url
        kind = head.removeprefix("data:image/").partition(";")[0]
        suffix = kind if kind.isascii() and kind.isalnum() else "bin"
        name = f"{hashlib.sha256(data).hexdigest()}.{suffix}"
        if name not in self._kept:
            try:
                self._path.mkdir(exist_ok=True)
                if not (self._path / name).exists():
                    write_whole(self._path / name, data)
            except OSError as error:
                _log.warning("image_not_kept", image=name, error=error.strerror or str(error))
                return url
            self._kept[name] = True
        return f"{_MARK}{name};{head}"


def with_images(nodes: list[Node], folder: Path | None) -> list[Node]:
    """The nodes with their images' own addresses again. One whose file is gone stays named."""

    def address(url: str) -> str:
        if folder is None or not url.startswith(_MARK):
            return url
        name, _, head = url.removeprefix(_MARK).partition(";")
        try:
            return _address(head, (folder / IMAGES / Path(name).name).read_bytes())
        except OSError as error:
            _log.warning("image_missing", image=name, error=error.strerror or str(error))
            return url

    return _with_addresses(nodes, address)


def _address(head: str, data: bytes) -> str:
    return f"{head},{base64.b64encode(data).decode()}"


def _with_addresses(nodes: list[Node], change: Callable[[str], str]) -> list[Node]:
    """The nodes, those of messages with images made anew with other addresses."""
    if not any(node.multimodal for node in nodes):
        return nodes
    return [_with_address(node, node.message, change) for node in nodes]


def _with_address(node: Node, message: Message | None, change: Callable[[str], str]) -> Node:
    if message is None or not message.is_multimodal or isinstance(message.content, str | None):
        return node
    changed = msgspec.structs.replace(message, content=tuple(_parts(message.content, change)))
    return msgspec.structs.replace(node, message=changed)


def _parts(parts: Sequence[dict[str, Any]], change: Callable[[str], str]) -> list[dict[str, Any]]:
    out = []
    for part in parts:
        image = part.get("image_url") if part.get("type") == "image_url" else None
        if isinstance(image, str):
            part = {**part, "image_url": change(image)}
        elif isinstance(image, dict) and isinstance(image.get("url"), str):
            part = {**part, "image_url": {**image, "url": change(image["url"])}}
        out.append(part)
    return out

"""Images of a run's conversations and tasks, each kept once, by its digest, beside the lines that name it.

    images/HEX.png      the bytes of an image; HEX is their SHA-256

A line has `run-image:HEX.png;data:image/png;base64` in the place of an image's address, in its messages, its nodes and
its task, and gets the address back when it is read. The members of a group are shown the same images, and a line would
hold each of them whole. An image is on the disk before the line that names it; where it cannot be, it stays in the
line. Images elsewhere (`http:`) are named by their address. What says by itself what such a name says is written with
one `run-image:` more, so that it comes back as it was.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from rollout.chat.messages import Message
from rollout.log import get_logger
from rollout.memo import Memo
from rollout.records import Rollout
from rollout.store.config import write_whole
from rollout.tokens.images import RUN_IMAGE, image_bytes
from rollout.tokens.trajectory import Node

IMAGES = "images"

_MARK = "run-image:"

#: What an image's file is called.
_FILE = re.compile(r"[0-9a-f]{64}\.[a-z0-9]+")

#: What a line has in an image's place, and what says the same by itself. Any other name is none of ours.
_NAMED = re.compile(rf"(?P<more>(?:{_MARK})*){RUN_IMAGE.pattern}", re.DOTALL)

#: Names of images that are remembered to be there; others are looked for on the disk.
_REMEMBERED = 65_536

#: Characters of addresses that are held for rollouts to come: the members of a group are shown the same images.
_HELD = 64 << 20

_log = get_logger(__name__)


class _Addresses(dict[str, str]):
    """What became of addresses: all those of the rollout at hand, and of those before it the last, up to a size."""

    def __init__(self, change: Callable[[str], str]) -> None:
        super().__init__()
        self._change = change
        self._size = 0

    def begin(self) -> None:
        """Another rollout is at hand. What was left as it was is looked at again."""
        for address in [address for address, changed in self.items() if changed is address]:
            self._drop(address)
        while self._size > _HELD:
            self._drop(next(iter(self)))

    def changed(self, address: str) -> str:
        """What becomes of an address; one string for all places that have it."""
        if (found := self.get(address)) is not None:
            self._drop(address)  # the one that was wanted last goes last
        else:
            found = self._change(address)
        self[address] = found
        self._size += len(address) + len(found)
        return found

    def _drop(self, address: str) -> None:
        self._size -= len(address) + len(self.pop(address))


class Pictures:
    """The images of a run folder, for what writes there."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / IMAGES
        self._addresses = _Addresses(self._name)
        self._kept = Memo[str, bool](_REMEMBERED)
        """Names of those that are there, as far as they are remembered: two images of one name are the same."""
        self._open: int | None = None
        """The folder of the images itself, wherever it is meanwhile."""

    def __repr__(self) -> str:
        return f"<Pictures {self._path}: {len(self._kept)}>"

    def named(self, rollout: Rollout) -> Rollout:
        """The rollout with its images named, and those written that are new. The one that is given stays as it is."""
        self._addresses.begin()
        return _with_addresses(rollout, self._addresses.changed)

    def hold(self) -> None:
        """Opens a folder that has images: they are kept then should it be taken away."""
        with contextlib.suppress(OSError):  # without it they are looked for by their names
            if self._open is None and self._path.is_dir():
                self._open = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
                for name in filter(_FILE.fullmatch, os.listdir(self._open)):
                    self._kept[name] = True

    def move(self, folder: Path) -> int:
        """Goes on in another folder, with the images that are found; gives how many known ones are lost.

        Of a folder that was renamed all are. Of one that was removed those are that rollouts in memory still have.
        """
        before, self._kept, self._path = self._kept, Memo[str, bool](_REMEMBERED), folder / IMAGES
        missing = set(before)
        if (old := self._open) is not None:
            self._open = None
            missing -= self._copy(old)
            os.close(old)
        held, self._addresses = self._addresses, _Addresses(self._name)
        for address, named in held.items():
            if address != named and self._addresses.changed(address) == named:
                missing.discard(named.removeprefix(_MARK).partition(";")[0])
        return len(missing)

    def _copy(self, old: int) -> set[str]:
        """Copies the images of a folder that is open; gives their names."""
        copied = set[str]()
        with contextlib.suppress(OSError):  # as of a folder that is gone from a share
            for name in filter(_FILE.fullmatch, os.listdir(old)):
                with contextlib.suppress(OSError), os.fdopen(os.open(name, os.O_RDONLY, dir_fd=old), "rb") as file:
                    self._keep(name, file.read())
                    copied.add(name)
        return copied

    def close(self) -> None:
        """Gives the folder back."""
        if self._open is not None:
            os.close(self._open)
            self._open = None

    def _name(self, address: str) -> str:
        if _NAMED.fullmatch(address):
            return _MARK + address
        data = image_bytes(address)
        head = address.partition(",")[0]
        if data is None or _address(head, data) != address:  # base64 in another form than ours would not come back
            return address
        kind = head.removeprefix("data:image/").partition(";")[0]
        name = f"{hashlib.sha256(data).hexdigest()}.{kind if re.fullmatch('[a-z0-9]+', kind) else 'bin'}"
        try:
            self._keep(name, data)
        except OSError as error:
            _log.warning("image_not_kept", image=name, error=error.strerror or str(error))
            return address
        return f"{_MARK}{name};{head}"

    def _keep(self, name: str, data: bytes) -> None:
        if name not in self._kept:
            self._path.mkdir(exist_ok=True)
            self.hold()
            if not (self._path / name).exists():
                write_whole(self._path / name, data)
            self._kept[name] = True


class Shown:
    """The images of a run folder, for what reads there: rollouts that are read one after another share them."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / IMAGES
        self._addresses = _Addresses(self._read)

    def __repr__(self) -> str:
        return f"<Shown {self._path}>"

    def restore(self, rollout: Rollout, line: bytes) -> Rollout:
        """What a line held, with its images' own addresses again. One whose file is gone stays named."""
        if _MARK.encode() not in line:
            return rollout
        self._addresses.begin()
        return _with_addresses(rollout, self._addresses.changed)

    def _read(self, address: str) -> str:
        if (named := _NAMED.fullmatch(address)) is None:
            return address
        if named["more"]:
            return address.removeprefix(_MARK)
        try:
            return _address(named["head"], (self._path / named["name"]).read_bytes())
        except OSError as error:
            _log.warning("image_missing", image=named["name"], error=error.strerror or str(error))
            return address


def _address(head: str, data: bytes) -> str:
    return f"{head},{base64.b64encode(data).decode()}"


def _with_addresses(rollout: Rollout, change: Callable[[str], str]) -> Rollout:
    """The rollout with other addresses of images; what has none is the same object."""
    return msgspec.structs.replace(
        rollout,
        task=_in_task(rollout.task, change),
        messages=[_in_message(message, change) for message in rollout.messages],
        nodes=[_in_node(node, change) for node in rollout.nodes],
    )


def _in_node(node: Node, change: Callable[[str], str]) -> Node:
    if node.message is None or not node.multimodal:
        return node
    message = _in_message(node.message, change)
    return node if message is node.message else msgspec.structs.replace(node, message=message)


def _in_message(message: Message, change: Callable[[str], str]) -> Message:
    if not message.is_multimodal or isinstance(message.content, str | None):
        return message
    return msgspec.structs.replace(message, content=tuple(_parts(message.content, change)))


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


def _in_task(value: Any, change: Callable[[str], str]) -> Any:
    """Any data of a task, with what stands in it at whatever depth as an image's address."""
    if isinstance(value, str):
        return change(value) if value.startswith(("data:image/", _MARK)) else value
    if isinstance(value, Mapping):
        named = {key: _in_task(item, change) for key, item in value.items()}
        return named if any(named[key] is not item for key, item in value.items()) else value
    if isinstance(value, list | tuple):
        items = [_in_task(item, change) for item in value]
        return items if any(now is not item for now, item in zip(items, value, strict=True)) else value
    return value

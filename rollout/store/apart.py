"""What a run's lines name but do not hold: the bytes of routed experts and sampling masks.

    token_fields.bin    one after the other, as each rollout ends; only where a run asks for them

Where a node of a line has such a field, it says `[first byte, bytes]` of this file. Bytes are written and flushed
before the line that names them, so a line that is whole has them. What a stop left there without a line, none names.
"""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from rollout.token_fields import Blob

FIELDS = "token_fields.bin"


class Apart:
    """The file of a run folder, for what writes there."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FIELDS
        self._file: IO[bytes] | None = None
        self._parts: list[bytes] = []
        """Named by the line that is being encoded, and not written yet."""
        self._next = 0
        """Where the next part will begin."""

    def __repr__(self) -> str:
        return f"<Apart {self._path}{'' if self._file is None else ', open'}>"

    def begin(self) -> None:
        """A line is about to be encoded. Raises OSError."""
        self._parts = []
        if self._file is not None:
            self._next = self._file.seek(0, os.SEEK_END)

    def add(self, blob: Blob) -> tuple[int, int]:
        """The first byte and the number of bytes that a line is to name. Raises OSError, UsageError."""
        if self._file is None:
            self._file = self._path.open("a+b")
            self._next = self._file.seek(0, os.SEEK_END)
        self._parts.append(blob.data)
        begins, self._next = self._next, self._next + len(blob)
        return begins, len(blob)

    def write(self, *, fsync: bool) -> None:
        """Writes what the line names. Raises OSError."""
        if self._file is None or not self._parts:
            return
        self._file.write(b"".join(self._parts))
        self._file.flush()
        if fsync:
            os.fsync(self._file.fileno())
        self._parts = []

    def hold(self, settings: Mapping[str, Any]) -> None:
        """Opens the file of a run that asks for fields, or has some: it is kept then should its folder be taken away.

        Raises OSError.
        """
        asked = settings.get("routed_experts") or settings.get("sampling_mask")
        if self._file is None and (asked or self._path.exists()):
            self._file = self._path.open("a+b")

    def move(self, folder: Path) -> None:
        """Goes on in another folder, with all that was written. Raises OSError."""
        old, self._path = self._file, folder / FIELDS
        if old is None:
            return
        self._file = self._path.open("x+b")
        old.seek(0)
        shutil.copyfileobj(old, self._file)
        self._file.flush()
        old.close()

    def close(self) -> None:
        """Raises OSError."""
        if self._file is not None:
            file, self._file = self._file, None
            os.fsync(file.fileno())
            file.close()


def read_blob(value: Any, folder: Path | None) -> Blob:
    """A blob as a line has it: by its place in a folder's file, or in itself. Raises ValueError."""
    if isinstance(value, str):
        return Blob(base64.b64decode(value, validate=True))
    match value:
        case [int(begins), int(size)] if begins >= 0 and size >= 0:
            return Blob(place=(None if folder is None else folder / FIELDS, begins, size))
    raise ValueError("neither a place in token_fields.bin nor bytes")

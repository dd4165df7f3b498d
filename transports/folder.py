"""What a served model's folder says of it, where the server names one that is on this machine."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec

from transports.http.answers import UNREADABLE


async def read_json(folder: str | None, name: str) -> dict[str, Any] | None:
    """A file of the folder; None where the folder is not here, empty where the file cannot be read."""
    if not folder or not await anyio.Path(folder).is_dir():
        return None
    try:
        return msgspec.json.decode(await (anyio.Path(folder) / name).read_bytes(), type=dict[str, Any])
    except (OSError, *UNREADABLE):
        return {}


async def vocab_size(folder: str | None) -> int | None:
    """How many ids the model takes, as its configuration says; a model that sees has one of its text part."""
    config = await read_json(folder, "config.json") or {}
    text = config.get("text_config")
    size = (text if isinstance(text, dict) else config).get("vocab_size") or config.get("vocab_size")
    return size if isinstance(size, int) and size > 0 else None

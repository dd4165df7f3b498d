"""What a served model's folder says of it, where the server names one that is on this machine."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec

from transports.http.answers import UNREADABLE


async def read_json(folder: str | None, name: str) -> dict[str, Any] | None:
    """A file of the folder; None where the folder is not here, empty where the file cannot be read."""
    try:
        if not folder or not await anyio.Path(folder).is_dir():
            return None
    except OSError:  # what is no name of a folder here, such as one that is too long
        return None
    try:
        return msgspec.json.decode(await (anyio.Path(folder) / name).read_bytes(), type=dict[str, Any])
    except (OSError, *UNREADABLE):
        return {}


async def vocab_size(folder: str | None) -> int | None:
    """How many ids the model takes, as its configuration says."""
    return await _number(folder, "vocab_size")


async def experts(folder: str | None) -> tuple[int, int] | None:
    """The layers of a mixture of experts, dense ones included, and how many experts each sends a token to."""
    layers, top_k = await _number(folder, "num_hidden_layers"), await _number(folder, *_TOP_K)
    return (layers, top_k) if layers is not None and top_k is not None else None


#: How configurations call it.
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k")


async def _number(folder: str | None, *names: str) -> int | None:
    """The first of these in the model's configuration; a model that sees has one of its text part."""
    config = await read_json(folder, "config.json") or {}
    text = config.get("text_config")
    for part in (text, config) if isinstance(text, dict) else (config,):
        for name in names:
            if isinstance(found := part.get(name), int) and found > 0:
                return found
    return None

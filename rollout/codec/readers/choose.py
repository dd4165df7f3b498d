"""Which reader a model needs."""

from __future__ import annotations

from typing import Any

from rollout.codec.readers.base import Reader
from rollout.codec.readers.tagged import HERMES
from rollout.errors import ConfigError

READERS: dict[str, Reader] = {reader.name: reader for reader in (HERMES,)}


def choose_reader(tokenizer: Any, name: str = "auto", *, family: str | None = None) -> Reader | None:
    """The reader that `name` names, or that fits what the model is; None where none does. Raises ConfigError.

    `family` is the family of `renderers` that the model was found to be of.
    """
    if name != "auto":
        if name not in READERS:
            raise ConfigError(f"no reader {name!r}; there are: auto, {', '.join(READERS)}")
        return READERS[name]
    return None if family is not None else HERMES

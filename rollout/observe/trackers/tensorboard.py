"""TensorBoard: event files in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from rollout.observe.loggers import MetricsLogger


class TensorBoard(MetricsLogger):
    """Writes numbers into event files; a folder that has some gets further ones."""

    def __init__(self, folder: str | Path) -> None:
        """Raises OSError where it cannot be written."""
        super().__init__()
        self._writer = SummaryWriter(str(folder), flush_secs=10)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `MetricsLogger`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


def make(rest: str, name: str, config: Mapping[str, Any]) -> TensorBoard:
    """By `--log tensorboard:FOLDER`."""
    logger = TensorBoard(rest)
    logger._writer.add_text("settings", "\n".join(f"    {key} = {value!r}" for key, value in config.items()))
    return logger

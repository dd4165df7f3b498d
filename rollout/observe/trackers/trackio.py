"""Trackio. Where its data goes, to this disk, a Space or a server, say its own variables, such as TRACKIO_DIR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trackio

from rollout.observe.loggers import MetricsLogger


class Trackio(MetricsLogger):
    """Logs numbers to a run."""

    def __init__(self, run: Any = None, **init: Any) -> None:
        """`run` is the caller's own, who ends it, too; else one is begun by `trackio.init(**init)`."""
        super().__init__()
        self._ours = run is None
        self._run = trackio.init(embed=False, **init) if run is None else run
        self.run_id: str = self._run.name

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `MetricsLogger`."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Ends the run, where it is ours."""
        if self._ours:
            self._run.finish()


def make(rest: str, name: str, config: Mapping[str, Any], *, run_id: str | None = None) -> Trackio:
    """By `--log trackio:PROJECT`. Its runs are found by their names: of several the last that was begun."""
    if run_id is not None:
        return Trackio(project=rest, name=run_id, config=dict(config), resume="must")
    return Trackio(project=rest, name=name, config=dict(config))

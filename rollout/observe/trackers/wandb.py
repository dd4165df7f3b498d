"""Weights & Biases. Where it goes, and whether it is offline, say its own variables, such as WANDB_MODE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import wandb

from rollout.observe.loggers import MetricsLogger

#: The x axis of all charts.
_STEP = "groups"


class WandB(MetricsLogger):
    """Logs numbers to a run."""

    def __init__(self, run: Any = None, **init: Any) -> None:
        """`run` is the caller's own, who ends it, too; else one is begun by `wandb.init(**init)`."""
        super().__init__()
        self._ours = run is None
        # What the program prints is not W&B's: our standard output is one JSON object.
        self._run = wandb.init(settings=wandb.Settings(console="off"), **init) if run is None else run
        self.run_id: str = self._run.id
        # Steps of its own would drop what comes with an older one: a trainer logs to the same run.
        self._run.define_metric(_STEP)
        for prefix in ("reward", "group", "metric", "engine", "fallback", "failure", "pass_at", "eval"):
            self._run.define_metric(f"{prefix}/*", step_metric=_STEP)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `MetricsLogger`."""
        self._run.log({**values, _STEP: step})

    def close(self) -> None:
        """Ends the run, where it is ours."""
        if self._ours:
            self._run.finish()


def make(rest: str, name: str, config: Mapping[str, Any], *, run_id: str | None = None) -> WandB:
    """By `--log wandb:[ENTITY/]PROJECT`."""
    entity, _, project = rest.rpartition("/")
    on = {} if run_id is None else {"id": run_id, "resume": "allow"}
    return WandB(project=project, entity=entity or None, name=name, config=dict(config), **on)

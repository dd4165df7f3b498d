"""MLflow. Where its server or database is says its own variable, MLFLOW_TRACKING_URI."""

from __future__ import annotations

import posixpath
import re
import time
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from rollout.observe.loggers import MetricsLogger
from rollout.observe.stats import Stats

#: Numbers that are sent at once: a request for each group would keep a busy run waiting. The server takes 1,000.
_AT_ONCE = 500

#: What its servers refuse in a name: an environment may call its metrics anything.
_NOT_IN_NAMES = re.compile(r"[^\w\-. /:]", re.ASCII)

#: Settings that become parameters of the run: the server takes 100 at once, of a text that is bounded.
_MOST_PARAMS, _LONGEST = 100, 500


class Mlflow(MetricsLogger):
    """Logs numbers to a run, many at once: when stats come, and at the end."""

    def __init__(
        self,
        experiment: str = "rollout",
        *,
        run_id: str | None = None,
        tracking_uri: str | None = None,
        name: str | None = None,
        params: Mapping[str, Any] = {},
    ) -> None:
        """`run_id` is the caller's own run, who ends it, too; else one is begun in the experiment."""
        super().__init__()
        self._client = MlflowClient(tracking_uri=tracking_uri)
        self._ours = run_id is None
        if run_id is None:
            found = self._client.get_experiment_by_name(experiment)
            place = found.experiment_id if found is not None else self._client.create_experiment(experiment)
            run_id = self._client.create_run(place, run_name=name).info.run_id
        self.run_id: str = run_id
        self._waiting: list[Any] = []
        if params:
            kept = [Param(key, str(value)[:_LONGEST]) for key, value in list(params.items())[:_MOST_PARAMS]]
            self._client.log_batch(self.run_id, params=kept)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `MetricsLogger`."""
        now = int(time.time() * 1000)
        self._waiting += [Metric(_taken(name), value, now, step) for name, value in values.items()]
        if len(self._waiting) >= _AT_ONCE:
            self._send()

    def on_stats(self, stats: Stats, step: int) -> None:
        """See `Logger`."""
        super().on_stats(stats, step)
        self._send()

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for at in range(0, len(waiting), _AT_ONCE):
            self._client.log_batch(self.run_id, metrics=waiting[at : at + _AT_ONCE])

    def close(self) -> None:
        """Sends what is left, and ends the run, where it is ours."""
        self._send()
        if self._ours:
            self._client.set_terminated(self.run_id)


def _taken(name: str) -> str:
    """A name that a server takes: also as a path it must be what it is."""
    clean = _NOT_IN_NAMES.sub("_", name)
    return clean if posixpath.normpath(clean) == clean else clean.replace("/", "_")


def make(rest: str, name: str, config: Mapping[str, Any], *, run_id: str | None = None) -> Mlflow:
    """By `--log mlflow:EXPERIMENT`. Raises MlflowException for a run that is not there any more."""
    if run_id is None:
        return Mlflow(rest, name=name, params=config)
    logger = Mlflow(run_id=run_id)
    logger._client.update_run(run_id, status="RUNNING")
    logger._ours = True  # its parameters are what they were: they cannot be changed there
    return logger

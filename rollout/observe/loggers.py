"""What an engine's loggers are: whoever is told of each group that comes, and now and then of where the engine stands.

    class Printed:
        def on_group(self, group, step, evaluation): print(step, group.rewards)
        def on_stats(self, stats, step): print(step, stats.turns)
        def close(self): ...

    engine.log_to(Printed(), TensorBoard("runs/tensorboard"))

`step` is how many groups have come. Each logger is called in a thread of its own (`rollout.observe.log_thread`): it may
take its time, and what it raises costs what it was told. A group that it is handed is the trainer's, too: it is
only to be read.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from statistics import fmean, pstdev
from typing import Protocol

from rollout.door import well_formed
from rollout.errors import ConfigError
from rollout.observe.stats import Stats
from rollout.records import Group
from rollout.registry import DISTRIBUTION, load_entry

#: Names of an environment's metrics that one logger has; what comes later is left out.
MOST_NAMES = 100

#: A name's characters at most: MLflow's servers take 250.
_LONGEST = 120

#: The group of entry points: what makes a logger of what stands behind the colon in `--log NAME:REST`.
GROUP = "rollout.loggers"


class Logger(Protocol):
    """Is told what comes of an engine. Called from one thread."""

    def on_group(self, group: Group, step: int, evaluation: bool) -> None:
        """A group has come: as many as `step` have so far."""
        ...

    def on_stats(self, stats: Stats, step: int) -> None:
        """Where the engine stands."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


#: What an entry point names: the text behind the colon, the run's name, its settings without secrets -> a logger. One
#: that has a `run_id` (text) can go on where a run is resumed: then it is made with that as `run_id=`.
Makes = Callable[..., Logger]


class MetricsLogger(ABC):
    """A logger that takes numbers by name: what W&B, MLflow, TensorBoard and Trackio have in common."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._before: tuple[float, int] | None = None
        """When stats came last, and the sampled tokens then."""

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Takes numbers, which are finite, by their names."""

    @abstractmethod
    def close(self) -> None: ...

    def on_group(self, group: Group, step: int, evaluation: bool) -> None:
        """See `Logger`. What is an evaluation's has names beneath `eval/`."""
        values = of_group(group, self._names)
        self.log({f"eval/{name}": value for name, value in values.items()} if evaluation else values, step)

    def on_stats(self, stats: Stats, step: int) -> None:
        """See `Logger`."""
        now, values = time.monotonic(), of_stats(stats)
        if self._before is not None and now > self._before[0]:
            values["engine/tokens_per_s"] = (stats.completion_tokens - self._before[1]) / (now - self._before[0])
        self._before = now, stats.completion_tokens
        self.log(values, step)


def of_group(group: Group, names: set[str]) -> dict[str, float]:
    """A group's numbers. `names` are the environment's that were taken so far; it grows to `MOST_NAMES`."""
    finished, rewards = group.finished, group.rewards
    values = {"group/finished": float(len(finished)), "group/failed": float(len(group.rollouts) - len(finished))}
    if not finished:
        return values
    if rewards:  # else nobody has said what they were worth
        values |= {
            "reward/mean": fmean(rewards),
            "reward/std": pstdev(rewards),
            "reward/min": min(rewards),
            "reward/max": max(rewards),
        }
    values |= {
        "group/turns": fmean(len(rollout.turns) for rollout in finished),
        "group/sampled_tokens": fmean(sum(turn.completion_tokens for turn in each.turns) for each in finished),
        "group/wall_s": fmean(rollout.timing.wall_s for rollout in finished),
        "group/env_s": fmean(rollout.timing.env_s for rollout in finished),
        "group/staleness": float(max(rollout.staleness for rollout in finished)),
    }
    by_name: dict[str, list[float]] = {}
    for rollout in finished:
        for name, value in rollout.metrics.items():
            if name in names or len(names) < MOST_NAMES:
                names.add(name)
                by_name.setdefault(name, []).append(value)
    values |= {f"metric/{well_formed(name)[:_LONGEST]}": fmean(found) for name, found in by_name.items()}
    return _finite(values.items())


def of_stats(stats: Stats) -> dict[str, float]:
    """Where an engine stands, in numbers."""
    values: dict[str, float] = {
        "engine/running": stats.running,
        "engine/queued": stats.queued,
        "engine/finished": stats.finished,
        "engine/failed": stats.failed,
        "engine/turns": stats.turns,
        "engine/token_in_share": stats.token_in_turns / stats.turns if stats.turns else 0.0,
        "engine/cut_off_share": stats.cut_off_share,
        "engine/prompt_tokens": stats.prompt_tokens,
        "engine/cached_tokens": stats.cached_tokens,
        "engine/sampled_tokens": stats.completion_tokens,
        "engine/loop_lag_p99_s": stats.loop_lag_p99_s,
        "engine/cpu_s": stats.cpu_s,
        "engine/weight_updates": stats.weight_updates,
        "engine/servers_up": sum(server.up for server in stats.servers),
        "engine/requests_in_flight": sum(tally.in_flight for tally in stats.asked),
        "engine/requests_failed": sum(tally.failed for tally in stats.asked),
    }
    values |= {f"fallback/{reason}": count for reason, count in stats.fallbacks.items()}
    values |= {f"failure/{kind}": count for kind, count in stats.failures.items()}
    values |= {f"pass_at/{k}": share for k, share in stats.pass_at_k.items()}
    return _finite((name, float(value)) for name, value in values.items())


def _finite(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    return {name: value for name, value in values if math.isfinite(value)}


def find_maker(spec: str) -> tuple[Makes, str]:
    """What makes the logger that `NAME:REST` names, and the rest. Raises ConfigError, also for a missing package."""
    name, _, rest = spec.partition(":")
    known = sorted(point.name for point in entry_points(group=GROUP))
    if name not in known or not rest:
        shapes = ", ".join(f"{each}:{_RESTS.get(each, '...')}" for each in known)
        raise ConfigError(f"--log {spec!r} names no logger; there are: {shapes}")
    try:
        return load_entry(GROUP, name), rest
    except ConfigError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and name in _RESTS:
            remedy = f"pip install '{DISTRIBUTION}[{name}]'"
            raise ConfigError(f"--log {spec} needs {missing.name}, which is not installed: {remedy}") from missing
        raise ConfigError(f"--log {spec}: {error}") from missing


#: What stands behind the colon of each, for people.
_RESTS = {"tensorboard": "FOLDER", "wandb": "[ENTITY/]PROJECT", "mlflow": "EXPERIMENT", "trackio": "PROJECT"}

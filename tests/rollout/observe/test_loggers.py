"""What loggers are told, as numbers, and how one is named."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping

import pytest

from rollout.errors import ConfigError
from rollout.observe.loggers import MOST_NAMES, MetricsLogger, find_maker, of_group, of_stats
from rollout.observe.stats import Stats
from rollout.records import Failure, FailureKind, Group, Rollout, Route, Timing, Turn
from rollout.servers.fleet import ServerState
from rollout.servers.tally import Tally


def group(*rewards: float, failed: int = 0, metrics: Mapping[str, float] = {}) -> Group:
    """A group of so many finished members and so many failed ones."""
    members = [
        Rollout(
            id=f"a-{n}",
            task_id="a",
            task_index=0,
            member=n,
            reward=reward,
            staleness=n,
            metrics=dict(metrics),
            turns=[Turn(route=Route.TOKEN_IN, completion_tokens=10)] * 2,
            timing=Timing(wall_s=2.0, env_s=0.5),
        )
        for n, reward in enumerate([*rewards, *[0.0] * failed])
    ]
    for rollout in members[len(rewards) :]:
        rollout.failure = Failure(kind=FailureKind.TRANSPORT, message="gone")
    return Group(task_id="a", task_index=0, task={}, rollouts=members)


class Kept(MetricsLogger):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.told.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


def test_a_group_is_told_by_its_finished_members() -> None:
    """Failed ones count as failed, and have no part in a mean."""
    values = of_group(group(1.0, 0.0, failed=1, metrics={"guesses": 3.0}), set())
    assert (values["reward/mean"], values["reward/std"]) == (0.5, 0.5)
    assert (values["reward/min"], values["reward/max"]) == (0.0, 1.0)
    assert (values["group/finished"], values["group/failed"], values["group/staleness"]) == (2, 1, 1)
    assert (values["group/turns"], values["group/sampled_tokens"], values["group/wall_s"]) == (2, 20, 2.0)
    assert values["metric/guesses"] == 3.0


def test_a_group_of_failures_has_no_reward() -> None:
    """A curve has a gap there, and no point at 0."""
    assert of_group(group(failed=2), set()) == {"group/finished": 0.0, "group/failed": 2.0}


def test_a_group_that_nobody_judged_has_no_reward() -> None:
    """It has turns and tokens, and no point at 0."""
    unknown = group(0.0, 0.0)
    for rollout in unknown.rollouts:
        rollout.reward_known = False
    values = of_group(unknown, set())
    assert values["group/finished"] == 2
    assert not any(name.startswith("reward/") for name in values)


def test_names_of_metrics_are_bounded() -> None:
    """An environment that names them by task does not make a chart for each."""
    names: set[str] = set()
    for n in range(5 * MOST_NAMES):
        of_group(group(1.0, metrics={f"task-{n}": 1.0}), names)
    assert len(names) == MOST_NAMES
    assert "metric/task-0" in of_group(group(1.0, metrics={"task-0": 1.0}), names)


def test_what_is_no_number_is_left_out() -> None:
    """Some trackers refuse a whole batch for one NaN."""
    values = of_group(group(1.0, metrics={"loss": math.nan, "high": math.inf, "low": 1.0}), set())
    assert {name for name in values if name.startswith("metric/")} == {"metric/low"}


def test_where_an_engine_stands_is_told() -> None:
    """Shares, reasons, failures and servers."""
    stats = Stats(turns=4, token_in_turns=3, message_in_turns=1, fallbacks={"first_turn": 1}, pass_at_k={2: 0.5})
    stats.failures, stats.asked = {"transport": 2}, [Tally(in_flight=3, failed=1)]
    stats.servers = [ServerState(url="a", up=True, deaths=0), ServerState(url="b", up=False, deaths=1)]
    values = of_stats(stats)
    assert values["engine/token_in_share"] == 0.75
    assert (values["fallback/first_turn"], values["failure/transport"], values["pass_at/2"]) == (1, 2, 0.5)
    assert (values["engine/servers_up"], values["engine/requests_in_flight"]) == (1, 3)


def test_speed_is_what_came_between_two_looks() -> None:
    """The first look knows none."""
    logger = Kept()
    logger.on_stats(Stats(completion_tokens=100), 0)
    logger.on_stats(Stats(completion_tokens=700), 3)
    (_, first), (step, second) = logger.told
    assert "engine/tokens_per_s" not in first
    assert step == 3
    assert second["engine/tokens_per_s"] > 0


def test_an_evaluations_groups_have_names_of_their_own() -> None:
    """Their reward is no point of the training curve."""
    logger = Kept()
    logger.on_group(group(1.0), 1, evaluation=True)
    logger.on_group(group(0.0), 2, evaluation=False)
    (_, evaluated), (_, trained) = logger.told
    assert evaluated["eval/reward/mean"] == 1.0
    assert "reward/mean" not in evaluated
    assert trained["reward/mean"] == 0.0


@pytest.mark.parametrize("spec", ["tensorflow:x", "tensorboard", "tensorboard:", "", ":x"])
def test_a_name_that_is_none_is_told_what_there_is(spec: str) -> None:
    """With what stands behind the colon of each."""
    with pytest.raises(
        ConfigError, match=r"names no logger; there are: mlflow:EXPERIMENT, tensorboard:FOLDER"
    ) as raised:
        find_maker(spec)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("spec", "package"),
    [("tensorboard:x", "tensorboardX"), ("wandb:x", "wandb"), ("mlflow:x", "mlflow"), ("trackio:x", "trackio")],
)
def test_a_missing_package_is_named_with_its_extra(spec: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, which can be pasted."""
    name = spec.partition(":")[0]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"rollout.observe.trackers.{name}", raising=False)
    with pytest.raises(ConfigError) as raised:
        find_maker(spec)
    remedy = f"pip install 'rollout-engine[{name}]'"
    assert str(raised.value) == f"--log {spec} needs {package}, which is not installed: {remedy}"

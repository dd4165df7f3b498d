"""Trackers have a run's numbers: the real packages, offline, read back by what is theirs."""

from __future__ import annotations

import os
import shlex
import sqlite3
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from rollout.store.folder import read_rollouts
from tests.docs_kit import PROJECT, blocks, commands
from tests.live.dashboards.kit import MARKS, run
from tests.rollout.observe.test_loggers import group
from tests.rollout.test_engine import collect, engine

pytestmark = [
    *MARKS,
    pytest.mark.filterwarnings("ignore"),  # what importing other packages warns of is theirs to mend
]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one real run that is logged to all four, and went on half way."""
    folder = tmp_path_factory.mktemp("trackers")
    logs = ["--log", "tensorboard:tb", "--log", "wandb:team/guess", "--log", "mlflow:guess", "--log", "trackio:guess"]
    run("guess_number", "-n", 8, "-r", 4, "--json", "-o", "run", *logs, cwd=folder, env=offline(folder))
    done = run("guess_number", "--resume", "-n", 16, "--json", "-o", "run", cwd=folder, env=offline(folder))
    assert len(done.stdout.splitlines()) == 1  # the trackers' own words are elsewhere
    assert "logger_" not in (folder / "run" / "events.log").read_text()
    return folder


def offline(folder: Path) -> Mapping[str, str]:
    """Nothing leaves this machine, and all lies in one folder."""
    return {
        **os.environ,
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TRACKIO_DIR": str(folder / "trackio"),
        "HF_HUB_OFFLINE": "1",
    }


@pytest.mark.parametrize("section", ["Trackers"])
def test_what_the_manual_prints_is_logged(section: str, tmp_path: Path) -> None:
    """Its commands, made small, as they stand there."""
    printed = [block for block in blocks(PROJECT / "docs" / "observe.md") if block.section == section]
    lines = [line for block in printed if block.language == "bash" for line in commands(block.text)]
    assert len(lines) == 2
    for line in lines:
        program, _, *arguments = shlex.split(line)
        assert program == "rollout"
        run(*arguments, "-n", 2, "-r", 2, "--max-tokens", 4, cwd=tmp_path, env=offline(tmp_path))
    assert list((tmp_path / "runs" / "tensorboard").glob("events.out.tfevents.*"))


def rewards(folder: Path) -> list[float]:
    """The groups' mean rewards, in whatever order they came."""
    by_task: dict[int, list[float]] = {}
    for rollout in read_rollouts(folder / "run"):
        by_task.setdefault(rollout.task_index, []).append(rollout.reward)
    return sorted(sum(found) / len(found) for found in by_task.values())


def check(found: Mapping[str, Mapping[int, float]], folder: Path) -> None:
    """By name, the values by step: each group is there, and where the second of two sessions stood at its end."""
    assert sorted(found["reward/mean"]) == list(range(1, 17))
    assert sorted(found["reward/mean"].values()) == pytest.approx(rewards(folder))
    assert found["engine/finished"][16] == 32
    assert {"metric/guesses", "group/turns", "pass_at/4", "fallback/first_turn"} <= set(found)


def test_tensorboard_has_the_run(played: Path) -> None:
    """Read by TensorBoard's own reader of event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(played / "tb"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    check({tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags}, played)


def test_mlflow_has_the_run(played: Path) -> None:
    """Read by its client: one run, ended, with the settings as parameters."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{played / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("guess")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    assert found.data.params["env"] == "guess_number"
    names = found.data.metrics
    histories = {name: client.get_metric_history(found.info.run_id, name) for name in names}
    check({name: {one.step: one.value for one in history} for name, history in histories.items()}, played)


def test_trackio_has_the_run(played: Path) -> None:
    """Read from its database."""
    import json

    with sqlite3.connect(played / "trackio" / "guess.db") as database:
        lines = database.execute("select step, metrics from metrics").fetchall()
    found: dict[str, dict[int, float]] = {}
    for step, metrics in lines:
        for name, value in json.loads(metrics).items():
            found.setdefault(name, {})[step] = value
    check(found, played)


def test_wandb_has_the_run(played: Path) -> None:
    """Read from the files that `wandb sync` would send, of one run each time: groups are the x axis."""
    from wandb.proto.wandb_internal_pb2 import Record

    paths = list(played.rglob("run-*.wandb"))
    assert (len(paths), len({path.name for path in paths})) == (2, 1)
    found: dict[str, dict[int, float]] = {}
    metrics, project = set(), ""
    for data in (data for path in paths for data in leveldb_log(path.read_bytes())):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "run":
            project = f"{record.run.entity}/{record.run.project}"
        elif record.WhichOneof("record_type") == "metric":
            metrics.add(record.metric.glob_name or record.metric.name)
        elif record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): float(item.value_json) for item in record.history.item}
            for name, value in items.items():
                found.setdefault(name, {})[int(items["groups"])] = value
    assert project == "team/guess"
    assert {"groups", "reward/*", "engine/*"} <= metrics
    check(found, played)


def leveldb_log(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, which W&B's files have behind seven bytes of their own."""
    at, block, parts = 7, 2**15, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # no head fits: the rest of the block is padding
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield parts
            parts = b""


def test_any_name_of_a_metric_can_be_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment may call its metrics anything; a tracker that refuses one would lose a batch with it."""
    from rollout.observe.trackers.mlflow import Mlflow
    from rollout.observe.trackers.tensorboard import TensorBoard

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    names = ["a/b", "win%", "ä", "x" * 300, "a b", "(best) of <all>", "half \ud800", "..", "//"]
    mlflow = Mlflow("names", tracking_uri=f"sqlite:///{tmp_path / 'm.db'}")
    for logger in (TensorBoard(tmp_path / "tb"), mlflow):
        logger.on_group(group(1.0, metrics={name: float(n) for n, name in enumerate(names)}), 1, evaluation=False)
        logger.close()
    data = mlflow._client.get_run(mlflow.run_id).data.metrics
    assert data["reward/mean"] == 1.0
    assert {value for key, value in data.items() if key.startswith("metric")} == set(map(float, range(len(names))))


async def test_a_trainers_own_run_is_logged_to_and_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what the trainer logs by itself, before and after."""
    import wandb
    from mlflow import MlflowClient

    from rollout.observe.trackers.mlflow import Mlflow
    from rollout.observe.trackers.wandb import WandB

    uri = f"sqlite:///{tmp_path / 'm.db'}"
    client = MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("mine")).info.run_id
    with wandb.init(mode="offline", dir=str(tmp_path), project="mine") as run:
        run.log({"loss": 1.0})
        running, _ = engine()
        async with running:
            running.log_to(WandB(run), Mlflow(run_id=run_id, tracking_uri=uri))
            await collect(running, 2)
        run.log({"loss": 0.5})
        assert run.summary["reward/mean"] == 1.0
        assert run.summary["loss"] == 0.5
    client.log_metric(run_id, "loss", 0.5)
    assert client.get_run(run_id).info.status == "RUNNING"
    assert {"loss", "reward/mean"} <= set(client.get_run(run_id).data.metrics)

"""The dashboard in docs/ shows a run: each of its queries is asked of a real Prometheus."""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.dashboards.kit import BIN, LIMIT_S, MARKS, awaited, free_port, get, metrics_url, process

pytestmark = MARKS

BOARD = json.loads((Path(__file__).parents[3] / "docs" / "grafana.json").read_bytes())

#: Some of its rollouts fail, as many as of a fleet's do; it plays until it is ended.
ENV = """
from envs.guess_number import GuessNumber

class E(GuessNumber):
    def reset(self, task):
        self.broken = task["at"] % 5 == 0
        return super().reset(task)
    def step(self, message):
        if self.broken: raise ConnectionError("the sandbox is gone")
        return super().step(message)
    def tasks(self, n, seed):
        return [{**task, "at": at} for at, task in enumerate(super().tasks(n, seed))]
"""


def queries() -> list[Any]:
    return [
        pytest.param(target["expr"], id=f"{panel['title']}: {target['legendFormat'] or target['refId']}")
        for panel in BOARD["panels"]
        for target in panel.get("targets", ())
    ]


def filled(query: str) -> str:
    """As Grafana sends it for all runs, at a scrape each second."""
    return query.replace("$__rate_interval", "10s").replace("$instance", ".*")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prometheus that scrapes a real run with failures, once it has scraped it for a while."""
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "env.py").write_text(ENV)
    command = [BIN / "rollout", "run", "env.py:E", "-n", 100_000, "-r", 4, "-c", 8, "--max-tokens", 12]
    # Retries: they, too, are to be seen.
    command += ["--metrics-port", 0, "--rollout-retries", 1, "-o", "run"]
    with process(*command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as run:
        assert run.stderr is not None
        target = metrics_url(run.stderr).removeprefix("http://").removesuffix("/metrics")
        scrape = {"job_name": "rollout", "static_configs": [{"targets": [target]}]}
        config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        port = free_port()
        options = ["--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{port}"]
        with (
            (folder / "prometheus.log").open("w") as log,
            process(BIN / "prometheus", *options, "--storage.tsdb.path=data", cwd=folder, stderr=log, stdout=log),
        ):
            url = f"http://127.0.0.1:{port}"
            awaited(lambda: get(f"{url}/-/ready") or None, "Prometheus")
            awaited(lambda: _failing(url), "failures at two scrapes")
            yield url


def _failing(url: str) -> bool | None:
    """Whether failures were counted between two scrapes."""
    found = values(url, 'sum(rate(rollout_rollouts_total{end="failed"}[10s]))')
    return True if found and found[0] > 0 else None


def values(url: str, query: str) -> list[float]:
    answer = get(f"{url}/api/v1/query", query=query)
    assert answer["status"] == "success"
    assert not answer.get("warnings")
    return [float(series["value"][1]) for series in answer["data"]["result"]]


@pytest.mark.parametrize("query", queries())
def test_a_query_has_data(query: str, prometheus: str) -> None:
    """No error, at least one series, and numbers."""
    asked = filled(query)
    assert "$" not in asked
    found = awaited(lambda: values(prometheus, asked) or None, query, 15.0)
    assert all(math.isfinite(value) for value in found)


def test_what_is_told_is_what_is_played(prometheus: str) -> None:
    """About a fifth fails of the environment, most turns go token-in, and the one server is up."""
    ended = 'sum(rollout_rollouts_total{{end="{}"}})'
    # Fewer tell no share: of the first two tasks, which are played at once, one fails.
    awaited(lambda: values(prometheus, "sum(rollout_rollouts_total) >= 40") or None, "40 rollouts", 2 * LIMIT_S)
    failed, finished = (values(prometheus, ended.format(end))[0] for end in ("failed", "finished"))
    assert 0.05 < failed / (failed + finished) < 0.5
    assert values(prometheus, 'sum(rollout_rollouts_total{kind="environment"})') > [0.0]
    assert values(prometheus, "sum(rollout_retries_total)") > [0.0]
    token_in = values(prometheus, 'sum(rollout_turns_total{route="token_in"}) / sum(rollout_turns_total)')
    assert token_in > [0.5]
    assert values(prometheus, "rollout_server_up") == [1.0]


def test_the_runs_to_choose_from_are_found(prometheus: str) -> None:
    """The variable of the dashboard, as Grafana asks for its values."""
    (variable,) = [one for one in BOARD["templating"]["list"] if one["type"] == "query"]
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
    assert found
    labels = get(f"{prometheus}/api/v1/label/{found[2]}/values", **{"match[]": found[1]})["data"]
    assert len(labels) == 1
    assert labels[0].startswith("127.0.0.1:")


def test_every_series_is_on_the_dashboard(prometheus: str) -> None:
    """Nothing is told that nobody looks at, but the weights' version, which is a number where there is one."""
    names = {name for name in get(f"{prometheus}/api/v1/label/__name__/values")["data"] if name.startswith("rollout_")}
    text = json.dumps(BOARD)
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in names}
    assert {name for name in families if name not in text} == set()

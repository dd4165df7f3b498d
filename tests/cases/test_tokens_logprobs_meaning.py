"""Case tokens/logprobs_meaning: below temperature 1 a logprob is not what a trainer takes it for, and it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rollout
from rollout.store.folder import read_rollouts
from rollout.tokens import samples
from tests.cases.commands import lines, ran
from tests.transports.embedded.test_serve import served

ROOT = Path(rollout.__file__).parents[1]


def first_logprobs(folder: Path) -> dict[tuple[int, ...], float]:
    """The logprob of each first-turn token, by all ids before and itself."""
    found: dict[tuple[int, ...], float] = {}
    for line in lines(folder):
        nodes = line["nodes"]
        first = next(node for node in nodes if node.get("sampled"))
        for at in range(len(first["ids"])):
            found.setdefault((*nodes[0]["ids"], *first["ids"][: at + 1]), first["logprobs"][at])
    return found


def played(folder: Path, temperature: float, *arguments: str) -> tuple[dict[tuple[int, ...], float], str]:
    done = ran("run", "guess_number", "-n", 8, "-r", 8, "-s", f"temperature={temperature}", "-o", folder, *arguments)
    assert done.returncode == 0, done.stderr
    return first_logprobs(folder), done.stderr


def unlike(one: dict[tuple[int, ...], float], other: dict[tuple[int, ...], float]) -> list[Any]:
    """Tokens that were sampled in both, and not certain, with another logprob."""
    both = [(one[ids], other[ids]) for ids in one.keys() & other.keys() if one[ids] < -0.1]
    assert both
    return [pair for pair in both if abs(pair[0] - pair[1]) > 1e-3 * (1 + abs(pair[0]))]


@pytest.mark.slow
def test_logprobs_before_sampling_are_told_and_recorded(tmp_path: Path) -> None:
    """At temperature 0.25 they are those of temperature 1: the run says so once; record, samples and manual do, too."""
    warm, said = played(tmp_path / "warm", 1)
    assert "warning: logprobs" not in said
    cold, said = played(tmp_path / "cold", 0.25)
    assert unlike(warm, cold) == []
    assert said.count("warning: logprobs_before_sampling") == 1
    assert "--logprobs-mode processed_logprobs" in said
    for rollout_ in read_rollouts(tmp_path / "cold"):
        assert {turn.logprobs_mode for turn in rollout_.turns} == {"raw_logprobs"}
        for sample in rollout_.samples():
            assert (sample.logprobs_mode, {turn.temperature for turn in sample.turns}) == ("raw_logprobs", {0.25})
    words = [(ROOT / "README.md").read_text(), *(page.read_text() for page in (ROOT / "docs").glob("*.md"))]
    assert any("--logprobs-mode" in text for text in words)
    assert "--logprobs-mode" in (samples.__doc__ or "")


@pytest.mark.slow
def test_a_server_that_reports_them_after_sampling_is_found_out(tmp_path: Path) -> None:
    """On `processed_logprobs` they are what was drawn from, probe says so, and no run is warned."""
    with served("--logprobs-mode", "processed_logprobs") as url:
        found = json.loads(ran("probe", url, "--json").stdout)
        assert found["server"]["logprobs_mode"] == "processed_logprobs"
        warm, _ = played(tmp_path / "warm", 1, "--base-url", url)
        cold, said = played(tmp_path / "cold", 0.25, "--base-url", url)
    assert unlike(warm, cold)
    assert "warning: logprobs" not in said

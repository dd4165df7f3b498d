"""The client's cost: what fails a check, and what is only noise."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks import client
from benchmarks.client import Recorded, Row, faults_of, is_slower


def _row(ours: list[float], floors: list[float]) -> Row:
    row = Row("http://127.0.0.1", "tito", 4, 128)
    row.ours, row.floors, row.lags, row.calls = ours, floors, [0.0] * len(ours), 1_000
    return row


def test_a_row_is_judged_by_the_least_of_its_repeats() -> None:
    row = _row([0.6, 1.9, 0.7], [0.4, 0.2, 0.2])
    assert row.ratio == 3.0
    assert "| 3.0 | 1.5 to 9.5 |" in row.markdown()
    assert not is_slower(row, {"tito 4x128": Recorded(2.5, 1_000)})
    assert is_slower(row, {"tito 4x128": Recorded(1.9, 1_000)})
    assert is_slower(row, {})


@pytest.mark.parametrize(
    ("was", "said"),
    [
        (Recorded(3.0, 1_000), []),
        (Recorded(3.0, 900), ["tito 4x128: 1000 calls a turn, recorded 900"]),
        (Recorded(1.9, 950), ["tito 4x128: 3.0 bare loops, recorded 1.9"]),
    ],
)
def test_more_calls_by_a_tenth_are_a_fault_on_any_machine(was: Recorded, said: list[str]) -> None:
    row = _row([0.6], [0.2])
    assert faults_of(row, {row.name: was}) == said
    assert faults_of(row, {}) == ["tito 4x128: never recorded"]


@pytest.mark.parametrize(("ours", "code", "looks"), [([3.0, 1.0], 0, 2), ([3.0], 1, 1 + client.SECOND_LOOKS)])
def test_a_row_that_looks_worse_is_measured_again_before_it_counts(
    ours: list[float],
    code: int,
    looks: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[int] = []

    async def measure(row: Row, repeats: int) -> None:
        row.ours.append(ours[min(len(seen), len(ours) - 1)])
        row.floors.append(1.0)
        row.lags.append(0.0)
        seen.append(repeats)

    ratios = tmp_path / "ratios.json"
    ratios.write_bytes(msgspec.json.encode({"tito 4x128": Recorded(1.0, 0)}))
    monkeypatch.setattr(client, "RATIOS", ratios)
    monkeypatch.setattr(Row, "measure", measure)
    assert client.main(["--check", "--mode", "tito", "--shape", "4x128", "--repeats", "2"]) == code
    assert seen == [2] * looks
    assert ("tito 4x128: 3.0 bare loops, recorded 1.0" in capsys.readouterr().err) == bool(code)


@pytest.mark.slow
def test_families_are_measured_one_behind_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    """A table for a user's replies and one for results of tools: a row for each family, with all of its columns."""
    chosen = ["qwen3", "template:call-ids-shown", "template:numbered"]
    only = [word for name in chosen for word in ("--only", name)]
    assert client.main(["--families", *only, "--repeats", "1", "--contexts", "100,500"]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == ["family", *chosen] * 2
    assert len({row.count("|") for row in rows}) == 1
    assert [row.split(" | ")[-1] for row in rows] == ["token-in |", "100% |", "100% |", "0% |"] * 2
    assert printed.splitlines()[-1].startswith("A bridge takes ")


def test_a_family_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        client.main(["--families", "--only", "qwen33"])
    assert "no family 'qwen33'; there are: qwen3, " in capsys.readouterr().err

"""What is logged: everything to the file, each kind once to people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from rollout.cli import logs
from rollout.cli.logs import MOST_KINDS, EventLog, printable
from rollout.log import get_logger


@pytest.fixture
def shown() -> list[str]:
    return []


@pytest.fixture
def log(shown: list[str]) -> Iterator[EventLog]:
    with EventLog(shown.append) as log:
        yield log


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_kind_is_shown_once_and_the_rest_are_counted(tmp_path: Path) -> None:
    """Texts that differ from rollout to rollout make no kinds; the file has every event."""
    shown: list[str] = []
    with EventLog(shown.append) as log:
        log.open(tmp_path / "events.log")
        for number in range(60):
            structlog.get_logger().warning("env_close_failed", error=f"container {number} is gone")
        structlog.get_logger().warning("fallback", reason="no_match")
    assert [line.split()[1] for line in shown[:2]] == ["env_close_failed", "fallback"]
    assert shown[2:] == [f"env_close_failed: 59 more; all are in {tmp_path / 'events.log'}"]
    assert len(events(tmp_path / "events.log")) == 61


def test_the_first_traceback_is_shown_whole(log: EventLog, shown: list[str]) -> None:
    """Whoever wrote the environment sees the file and the line; later kinds are one line each."""
    for error in (KeyError("answer"), KeyError("other"), ValueError("v")):
        try:
            raise error
        except Exception as raised:
            structlog.get_logger().warning("environment_raised", rollout="a-0", call="step", exc_info=raised)
    assert len(shown) == 3
    assert shown[0] == "warning: environment_raised rollout=a-0 call=step"
    assert "Traceback (most recent call last)" in shown[1]
    assert __file__.rpartition("/")[2] in shown[1]
    assert "Traceback" not in shown[2]


def test_a_traceback_that_a_worker_sent_is_shown(log: EventLog, shown: list[str]) -> None:
    """It comes as text, from another process."""
    structlog.get_logger().warning("environment_raised", exception="Traceback ...\n  File e.py")
    assert shown == ["warning: environment_raised", "Traceback ...\n  File e.py"]


def test_kinds_do_not_fill_the_memory(log: EventLog, shown: list[str]) -> None:
    """An event that is named by its rollout is one of other kinds, after many."""
    for number in range(3 * MOST_KINDS):
        structlog.get_logger().warning(f"event {number}")
    assert len(shown) == MOST_KINDS + 1


def test_a_slow_disk_drops_events_and_says_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue has an end; the count of what did not fit is in the file."""
    monkeypatch.setattr(logs, "MOST_WAITING", 5)
    with EventLog(lambda line: None) as log:
        for number in range(9):
            structlog.get_logger().info("event", number=number)
        log.open(tmp_path / "events.log")
    found = events(tmp_path / "events.log")
    assert {"event": "events_dropped", "count": 4} in found
    assert [event["number"] for event in found if event["event"] == "event"] == [0, 1, 2, 3, 4]


def test_a_full_disk_ends_nothing() -> None:
    """Lines that cannot be written are lost, and whoever logs does not hear of it."""
    with EventLog(lambda line: None) as log:
        log.open(Path("/dev/full"))
        for _ in range(10):
            structlog.get_logger().info("event")


@given(st.text())
def test_what_is_shown_obeys_nobody(text: str) -> None:
    """A terminal gets no control character: an escape stands for each, and ends of lines stay where they are lines."""
    assert printable(text).isprintable()
    assert all(char.isprintable() or char == "\n" or char == "\t" for char in printable(text, lines=True))
    if text.isprintable():
        assert printable(text) == text


def test_a_traceback_is_cut_in_its_middle(tmp_path: Path) -> None:
    """In the file as to people: an exception may carry whatever it likes."""
    shown: list[str] = []
    with EventLog(shown.append) as log:
        log.open(tmp_path / "events.log")
        try:
            raise ValueError("x" * 10**6 + " the end")
        except ValueError as error:
            structlog.get_logger().warning("environment_raised", exc_info=error)
    (event,) = events(tmp_path / "events.log")
    for text in (event["exception"], shown[1]):
        assert len(text) < 30_000
        assert text.startswith("Traceback")
        assert text.endswith(" the end")


def test_what_the_library_logs_is_shown_and_written_as_what_structlog_logs(tmp_path: Path) -> None:
    """Name, fields, level and traceback; afterwards nothing of ours is attached any more."""
    shown: list[str] = []
    with EventLog(shown.append) as log:
        log.open(tmp_path / "events.log")
        try:
            raise ValueError("nothing")
        except ValueError as error:
            get_logger("rollout.play").warning("environment_raised", rollout="a-0", exc_info=error)
        get_logger("transports.http").info("event", number=1)
        get_logger("rollout.play").debug("too_much")
    get_logger("rollout.play").warning("afterwards")
    first, second = events(tmp_path / "events.log")
    assert (first["event"], first["level"], first["rollout"]) == ("environment_raised", "warning", "a-0")
    assert first["exception"].endswith("ValueError: nothing")
    assert (second["event"], second["level"], second["number"]) == ("event", "info", 1)
    assert shown[0] == "warning: environment_raised rollout=a-0"
    assert shown[1].endswith("ValueError: nothing")
    assert len(shown) == 2


def test_a_value_that_cannot_be_shown_costs_its_field(log: EventLog, shown: list[str]) -> None:
    """Any object may be logged, and each may raise when it is looked at."""

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = __str__

    get_logger("rollout.play").warning("event", value=Broken(), reason="r")
    assert shown == ["warning: event value=a Broken that cannot be shown reason=r"]

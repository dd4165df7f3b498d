"""Events of the library's log: for a program's own `logging`, and for nobody else."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.log import LOGGERS, UnlockedHandler, event_of, get_logger, handled_by, message
from tests.log_kit import capture_logs


def test_a_record_is_a_line_for_people_and_fields_for_programs(caplog: pytest.LogCaptureFixture) -> None:
    """Its place is the caller's, not ours."""
    with caplog.at_level(logging.INFO, "rollout"):
        get_logger("rollout.play.host").warning("env_close_cut", rollout="a-0", limit_s=5.0)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("rollout.play.host", "WARNING")
    assert record.getMessage() == "env_close_cut rollout=a-0 limit_s=5.0"
    assert event_of(record) == ("env_close_cut", {"rollout": "a-0", "limit_s": 5.0})
    assert record.pathname == __file__
    assert record.funcName == "test_a_record_is_a_line_for_people_and_fields_for_programs"


def test_a_traceback_has_no_variables(caplog: pytest.LogCaptureFixture) -> None:
    """It names the place and the error, and not what the frames held, such as a key."""
    key = "sesame".upper()
    try:
        raise ValueError(f"{len(key)} letters")
    except ValueError as error:
        get_logger("rollout.play").warning("environment_raised", exc_info=error)
    assert "ValueError: 6 letters" in caplog.text
    assert "SESAME" not in caplog.text


def test_what_nobody_wants_is_not_put_together() -> None:
    """A level that is off costs the question for it."""

    class Counted:
        shown = 0

        def __str__(self) -> str:
            self.shown += 1
            return "counted"

    value = Counted()
    get_logger("rollout.play").debug("event", value=value)
    assert value.shown == 0


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
def test_every_level_has_its_call(level: str) -> None:
    """As in `logging`."""
    with capture_logs() as logs:
        getattr(get_logger("transports.http"), level)("event", event="a field of that name")
    assert [entry["log_level"] for entry in logs] == [level]


@pytest.mark.slow
def test_a_library_prints_nothing() -> None:
    """Where a program has not configured `logging`, nothing comes out, on either stream."""
    script = (
        "from rollout.log import get_logger\nfor name in ('rollout.a', 'transports.b'): get_logger(name).error('e')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_handler_has_all_of_it_and_leaves_nothing_behind() -> None:
    """While it is attached, what is logged goes to it alone; levels are as before then."""
    before = [(logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in LOGGERS]
    outer: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = outer.append  # type: ignore[assignment,method-assign]
    with handled_by(handler, logging.INFO), capture_logs() as logs:
        pass
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with capture_logs() as logs:
            get_logger("rollout").warning("event")
    finally:
        root.removeHandler(handler)
    assert [entry["event"] for entry in logs] == ["event"]
    assert outer == []
    assert before == [(logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in LOGGERS]


def test_nobody_waits_for_an_unlocked_handler() -> None:
    """While one thread's event waits for a terminal, another's is handed on; what a filter drops is not."""
    waits, said = threading.Event(), list[str]()

    class Slow(UnlockedHandler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            if record.getMessage() == "first":
                quick.start()
                assert waits.wait(60)
            else:
                waits.set()

    handler, log = Slow(), get_logger("rollout.play")
    quick = threading.Thread(target=log.warning, args=("second",))
    handler.addFilter(lambda record: record.getMessage() != "dropped")
    with handled_by(handler, logging.INFO):
        log.warning("dropped")
        log.warning("first")
        quick.join(60)
    assert said == ["first", "second"]


@given(st.text(), st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_any_event_has_a_message(event: str, fields: dict[str, object]) -> None:
    """It begins with its name and has every field; a text with % is no pattern."""
    text = message(event, fields)
    assert text.startswith(event)
    assert all(str(value) in text for value in fields.values())

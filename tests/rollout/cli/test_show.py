"""Rollouts of a run as a tired person reads them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rollout.chat.messages import Function, MalformedToolCall, Message, ToolCall, tool, user
from rollout.cli.app import app
from rollout.cli.show import Choice, clean, conversation, show
from rollout.errors import UsageError
from rollout.records import Failure, FailureKind, Rollout, Route, StopReason, Turn
from rollout.store.folder import EVENTS, ROLLOUTS, encode_rollout

FORMAT_1 = Path(__file__).parents[2] / "fixtures" / "run-format-1"


def rollout_of(index: int, reward: float = 0.0, failure: Failure | None = None, **fields: Any) -> Rollout:
    stop = None if failure else StopReason.DONE
    base: dict[str, Any] = {"id": f"{index}-a-0", "task_id": f"{index}-a", "task_index": index, "member": 0}
    return Rollout(**base, reward=reward, stop=stop, failure=failure, **fields)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Five rollouts: rewards 3, 1, 2, and two that failed."""
    boom = Failure(kind=FailureKind.ENVIRONMENT, message="step raised it", error="RuntimeError", turn=2)
    rollouts = [
        rollout_of(0, 3.0),
        rollout_of(1, 1.0),
        rollout_of(2, 2.0),
        rollout_of(3, 0.0, boom),
        rollout_of(4, 0.0, boom),
    ]
    (tmp_path / ROLLOUTS).write_bytes(b"".join(encode_rollout(rollout) + b"\n" for rollout in rollouts))
    events = [
        {"event": "environment_raised", "rollout": "3-a-0", "exception": "Traceback: first"},
        {"event": "environment_raised", "rollout": "3-a-0", "exception": "Traceback: the second try\n  in env.py"},
        {"event": "other", "rollout": "4-a-0"},
    ]
    (tmp_path / EVENTS).write_text("".join(json.dumps(event) + "\n" for event in events) + '{"exception": "to')
    return tmp_path


def shown(run: Path, **choice: Any) -> str:
    return "".join(show(run, Choice(**choice), full=False, as_json=False))


def ids(run: Path, **choice: Any) -> list[str]:
    return [json.loads(line)["id"] for line in show(run, Choice(**choice), full=False, as_json=True)]


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        ({}, "0-a-0 1-a-0 2-a-0"),
        ({"limit": None}, "0-a-0 1-a-0 2-a-0 3-a-0 4-a-0"),
        ({"worst": 2}, "1-a-0 2-a-0"),
        ({"failed": True}, "3-a-0 4-a-0"),
        ({"task": "2-a"}, "2-a-0"),
        ({"task": "2"}, "2-a-0"),
        ({"task": "2-a-0"}, "2-a-0"),
        ({"task": "2-a", "failed": True}, ""),
    ],
)
def test_rollouts_are_chosen(run: Path, choice: dict[str, Any], found: str) -> None:
    """The first three, the worst that finished, those that failed, or those of a task."""
    assert ids(run, **choice) == found.split()


def test_what_is_not_shown_is_said(run: Path) -> None:
    """How many there are, and how to see them; nothing where all are shown."""
    assert shown(run).endswith("3 of 5 rollouts: -n 0 shows all, --worst N, --failed and --task ID choose\n")
    assert "-n 0" not in shown(run, limit=None)
    assert shown(run, task="2-a", failed=True) == "none of its 5 rollouts failed\n"


def test_a_task_that_is_not_there_is_named(run: Path) -> None:
    """With some that are."""
    with pytest.raises(UsageError, match="no rollout of task 'x'; it has: 0-a, 1-a, 2-a"):
        shown(run, task="x")
    with pytest.raises(UsageError, match="--worst must be 1 or more"):
        shown(run, worst=0)


def test_a_failure_comes_with_its_traceback(run: Path) -> None:
    """The last one that the log has of it; a rollout without one has its message."""
    text = shown(run, failed=True)
    assert (
        "failed in turn 2: environment\n  RuntimeError: step raised it\n  Traceback: the second try\n    in env.py"
        in text
    )
    assert "first" not in text
    assert "== 4-a-0   task 4, member 0   reward 0   failed: environment   0 turns, 0 sampled tokens, 0.0 s" in text


def test_a_conversation_has_all_that_was_said() -> None:
    """Roles, reasoning, calls and their answers, malformed calls, parts, and where an answer was cut off."""
    call = ToolCall(function=Function("add", '{"a":1}'), id="call_1")
    messages = [
        user("What?"),
        Message("assistant", "So.", "Hm.", (call,), malformed_tool_calls=(MalformedToolCall("{x", "invalid_json"),)),
        tool("2", call=call),
        Message("user", ({"type": "text", "text": "And"}, {"type": "image_url"})),
        Message("assistant", "3"),
    ]
    turns = [
        Turn(route=Route.MESSAGE_IN, completion_tokens=7),
        Turn(route=Route.TOKEN_IN, completion_tokens=1, finish_reason="length", reward=0.5),
    ]
    text = "\n".join(conversation(rollout_of(0, messages=messages, turns=turns), None, full=False))
    expected = """
user
  What?

assistant   turn of 7 tokens
  (thinks) Hm.
  So.
  -> add({"a":1})   call_1
  -> malformed call (invalid_json): {x

tool add (call_1)
  2

user
  And
  [image_url]

assistant   turn of 1 token, cut off at max_tokens, reward 0.5
  3"""
    assert text.endswith(expected)


def test_long_texts_are_cut_in_their_middle() -> None:
    """And how much is left out; `--full` has all."""
    rollout = rollout_of(0, messages=[user("a" * 5_000 + "end")])
    cut = "\n".join(conversation(rollout, None, full=False))
    assert "[... 3,403 characters left out, --full shows them ...]" in cut
    assert "aend" in cut
    assert "a" * 5_000 in "\n".join(conversation(rollout, None, full=True))


@given(st.text(st.characters(exclude_categories=[])))
def test_nothing_steers_the_terminal(text: str) -> None:
    """Any text prints as one that can be encoded, without control characters but newlines and tabs."""
    printed = clean(text)
    printed.encode()
    assert not any(ord(char) < 32 and char not in "\n\t" for char in printed)
    assert not set(printed) & set("\x7f\x9b\u202e\u2066")
    assert clean("\x1b[31mred") == "\\x1b[31mred"


def test_the_command_prints_to_standard_output(run: Path) -> None:
    """As text, or as one object per rollout and line; a folder that is none is a mistake."""
    result = CliRunner().invoke(app, ["show", str(run), "--worst", "1"])
    assert result.stdout.startswith("== 1-a-0")
    result = CliRunner().invoke(app, ["show", str(run), "--json"])
    assert [json.loads(line)["reward"] for line in result.stdout.splitlines()] == [3.0, 1.0, 2.0, 0.0, 0.0]
    assert CliRunner().invoke(app, ["show", str(run / "nothing")]).exit_code == 2


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_it_quietly(tmp_path: Path) -> None:
    """`rollout show RUN | head` says nothing of a broken pipe."""
    messages = [user("x" * 1_000)] * 200
    (tmp_path / ROLLOUTS).write_bytes(encode_rollout(rollout_of(0, messages=messages)) + b"\n")
    script = Path(sys.executable).with_name("rollout")
    process = subprocess.Popen([script, "show", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait(60)


def test_a_folder_of_format_1_is_shown(tmp_path: Path) -> None:
    """A folder from before there were versions."""
    shutil.copytree(FORMAT_1, tmp_path / "run")
    assert ids(tmp_path / "run") == ["0-0f41384a-0", "1-2fc049e1-0"]
    assert "guesses left" in shown(tmp_path / "run")

"""What launcher and driver say comes as it was said."""

from __future__ import annotations

import pytest

from rollout.workers import ray_messages as messages

COMMANDS: list[messages.Command] = [
    messages.Connect("10.0.0.1:6379", 0.5, {"rollout": 1.0}, {"env_vars": {"A": "b"}}),
    messages.Start(1),
    messages.Play(1, "10.0.0.1", 4000, {"sys_path": ["/x"], "folder": None, "structlog": True}),
    messages.Trace(1),
    messages.Kill(1),
    messages.AskLacking(1),
]
EVENTS: list[messages.Event] = [
    messages.Connected("10.0.0.1", "10.0.0.1:6379"),
    messages.NotConnected("nothing answers"),
    messages.Placed(1, b"\x00" * 32, "3.11.7", "0.1.0", "10.0.0.2", 77),
    messages.Over(1, "it left"),
    messages.Traced(1, "Thread 0x1"),
    messages.Lost("gone"),
    messages.Lacking(1, ["rollout"]),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_commands_come_as_they_were_said(command: messages.Command) -> None:
    """Each kind."""
    assert messages.decode_command(messages.encode(command)) == command


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_come_as_they_were_said(event: messages.Event) -> None:
    """Each kind."""
    assert messages.decode_event(messages.encode(event)) == event

"""What Ray raises is said in one line."""

from __future__ import annotations

import pytest

from rollout.workers.ray_reasons import MOST, last_line, reason

NODE_DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: RolloutWorker
\tactor_id: 2c9b54030ef034322dcb439601000000
\tpid: 1088
\tnamespace: e9970780-3f7a-45be-8721-217ed5d2647c
\tip: 10.0.0.2
The actor died because its node has died. Node Id: f675bb
\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats
"""


class TaskError(Exception):
    """As Ray hands on what was raised in an actor."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"\x1b[36mray::RolloutWorker.play()\x1b[39m (pid=1)\n  File ...\n{cause}")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError(NODE_DIED),
            "The actor died because its node has died. Node Id: f675bb; the actor's node was terminated unexpectedly: "
            "health check failed due to missing too many heartbeats",
        ),
        (TaskError(ValueError("no port")), "ValueError: no port"),
        (ConnectionError(), "ConnectionError"),
        (RuntimeError("\x1b[31mred\x1b[39m\n\nends."), "red; ends"),
    ],
)
def test_a_reason_is_one_line(error: Exception, said: str) -> None:
    """Without what Ray tells of the actor, colours, and processes' marks."""
    assert reason(error) == said


def test_a_node_without_the_engine_is_named_with_the_remedy() -> None:
    """However deep in a traceback Ray has it."""
    text = (
        "The actor died because of an error raised in its creation task\nModuleNotFoundError: No module named 'rollout'"
    )
    assert reason(RuntimeError(text)) == (
        "No module named 'rollout' on its node: install this version of rollout-engine there, or name it in "
        "ray_runtime_env (pip, py_modules)"
    )


def test_a_long_reason_keeps_both_ends() -> None:
    """The beginning says what, and the end why."""
    said = reason(RuntimeError("begins " + "x" * 10_000 + " ends"))
    assert said.startswith("begins ")
    assert said.endswith(" ends")
    assert len(said) <= MOST + 5


def test_the_last_line_of_a_log_is_without_its_mark() -> None:
    """As of a driver that Ray has ended."""
    report = (
        "first\n[2026-11-26 03:40:45,655 E 727 1082] rpc_client.h:204: Failed to connect to GCS within 60 seconds.\n\n"
    )
    assert last_line(report) == "Failed to connect to GCS within 60 seconds."
    assert last_line("") == ""

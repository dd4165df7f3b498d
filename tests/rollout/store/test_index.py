"""The index has each member's last record, and its place in the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.errors import UsageError
from rollout.records import Failure, FailureKind, Rollout, StopReason
from rollout.store.folder import ROLLOUTS, encode_rollout, read_rollouts
from rollout.store.index import RunIndex

KINDS = st.none() | st.sampled_from([FailureKind.CANCELLED, FailureKind.ENVIRONMENT])


def rollout_of(task: int, member: int, reward: float, kind: FailureKind | None) -> Rollout:
    failure = None if kind is None else Failure(kind=kind, message="x\n")
    stop = StopReason.DONE if kind is None else None
    return Rollout(
        id=f"{task}-a-{member}",
        task_id=f"{task}-a",
        task_index=task,
        member=member,
        task={"text": "é" * member},
        reward=reward,
        stop=stop,
        failure=failure,
    )


ROLLOUTS_OF_A_RUN = st.lists(
    st.builds(rollout_of, st.integers(0, 3), st.integers(0, 2), st.floats(-1, 1), KINDS), max_size=12
)


@pytest.mark.slow
@given(ROLLOUTS_OF_A_RUN, st.binary(max_size=20).filter(lambda torn: b"\n" not in torn))
def test_it_tells_what_reading_all_tells(
    tmp_path_factory: pytest.TempPathFactory, rollouts: list[Rollout], torn: bytes
) -> None:
    """For every run, whatever was played again and wherever its last line was cut."""
    folder = tmp_path_factory.mktemp("run")
    whole = b"".join(encode_rollout(rollout) + b"\n" for rollout in rollouts)
    (folder / ROLLOUTS).write_bytes(whole + torn)
    last = {(rollout.task_index, rollout.member): rollout for rollout in read_rollouts(folder)}
    with RunIndex(folder) as index:
        assert {key: index.read(located) for key, located in index.last.items()} == last
        assert (index.end, index.records) == (len(whole), len(rollouts))
        assert [rollout for group in index.groups() for rollout in group.rollouts] == [
            last[key] for key in sorted(last)
        ]
        cancelled = {key for key, located in index.last.items() if not located.finished}
    assert cancelled == {
        key for key, rollout in last.items() if rollout.failure and rollout.failure.kind is FailureKind.CANCELLED
    }


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    """With its number and what to do."""
    good = encode_rollout(rollout_of(0, 0, 1.0, None)) + b"\n"
    (tmp_path / ROLLOUTS).write_bytes(good + b"{}\n" + good)
    with pytest.raises(UsageError, match=r"line 2: .*without that line the folder is whole"):
        RunIndex(tmp_path)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    """As every reader does."""
    with pytest.raises(UsageError, match=r"is not a run folder: it has no rollouts\.jsonl"):
        RunIndex(tmp_path)

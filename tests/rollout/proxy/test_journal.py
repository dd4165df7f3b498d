"""The journal's files: written before they are needed, gone when they are not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rollout.errors import UsageError
from rollout.proxy.journal import Journal, JournalFailed, NotJournalled, read_sessions, read_turns
from rollout.proxy.journal_lines import Closed, EndLine, Opened, RewardLine, TurnLine


@contextmanager
def _journal(folder: Path, **settings: object) -> Iterator[Journal]:
    journal = Journal(folder, **settings)  # type: ignore[arg-type]
    try:
        yield journal
    finally:
        journal.close()


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("turns.*"))


async def test_a_line_is_there_when_its_write_returns(tmp_path: Path) -> None:
    """In the order in which lines were told, sessions before their turns."""
    with _journal(tmp_path, fsync=True) as journal:
        journal.tell(Opened(session="a", key="00"))
        await asyncio.gather(*(journal.write(RewardLine(session="a", reward=float(n))) for n in range(50)))
        assert [line.session for line in read_sessions(tmp_path)] == ["a"]
        rewards = [line.reward for _, line in read_turns(tmp_path) if isinstance(line, RewardLine)]
        assert rewards == [float(n) for n in range(50)]


async def test_a_torn_last_line_is_left_out_and_written_over(tmp_path: Path) -> None:
    """What a crash cut was never answered; the next process goes on behind it."""
    with _journal(tmp_path) as journal:
        await journal.write(Opened(session="a", key="00"))
        await journal.write(EndLine(session="a"))
    for path in (tmp_path / "sessions.jsonl", tmp_path / "turns.000001.jsonl"):
        path.write_bytes(path.read_bytes() + b'{"kind":"open')
    with _journal(tmp_path, places={"turns.000001.jsonl": {"a"}}) as journal:
        await journal.write(Closed(session="a"))
        await journal.write(EndLine(session="a", why="again"))
    assert [type(line) for line in read_sessions(tmp_path)] == [Opened, Closed]
    assert [line.why for _, line in read_turns(tmp_path) if isinstance(line, EndLine)] == ["", "again"]


async def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    """Nothing is passed over in silence."""
    (tmp_path / "sessions.jsonl").write_bytes(b'{"kind":"opened","session":1}\n{"kind":"closed","session":"a"}\n')
    with pytest.raises(UsageError, match=r"sessions\.jsonl, line 1"):
        list(read_sessions(tmp_path))


async def test_files_of_turns_go_with_their_last_session(tmp_path: Path) -> None:
    """A large one is closed and the next begun; each goes once all its sessions have ended."""
    with _journal(tmp_path, file_bytes=100) as journal:
        for session in ("a", "b", "a"):
            await journal.write(EndLine(session=session, why="x" * 200))
        assert _files(tmp_path) == [f"turns.00000{n}.jsonl" for n in (1, 2, 3)]
        journal.forget("b")
        await journal.write(EndLine(session="c"))
        assert _files(tmp_path) == [f"turns.00000{n}.jsonl" for n in (1, 3, 4)]
        journal.forget("a")
        await journal.write(EndLine(session="c"))
        assert _files(tmp_path) == ["turns.000004.jsonl"]


async def test_a_turn_that_is_no_json_is_its_own_fault(tmp_path: Path) -> None:
    """It is not written, and the others are."""
    line = RewardLine(session="a", metrics={"cut": "\ud83d"})  # type: ignore[dict-item]
    with _journal(tmp_path) as journal:
        with pytest.raises(NotJournalled):
            await journal.write(line)
        await journal.write(TurnLine(session="a"))
    assert len(list(read_turns(tmp_path))) == 1


async def test_a_disk_that_takes_no_more_is_told_once(tmp_path: Path) -> None:
    """Every line from then on fails with the same words, which say what to do."""
    told: list[JournalFailed] = []
    with _journal(tmp_path, on_failed=told.append) as journal:
        await journal.write(EndLine(session="a"))
        journal._turns.close()
        journal._turns = (tmp_path / "turns.000001.jsonl").open("rb", buffering=0)
        for _ in range(2):
            with pytest.raises(JournalFailed, match="same -o once there is room"):
                await journal.write(EndLine(session="a"))
        assert len(told) == 1

"""A recorder's folder: whose it is, and what of it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollout.errors import UsageError
from rollout.proxy.journal import read_sessions
from rollout.store.folder import read_rollouts
from tests.rollout.proxy.kit import text_of
from tests.rollout.proxy.recorder_kit import recorded


async def test_only_a_recorders_folder_goes_on(tmp_path: Path) -> None:
    """A run's folder is refused, and so are other settings, each by name."""
    async with recorded(tmp_path / "run"):
        with pytest.raises(UsageError, match="is being written"):
            async with recorded(tmp_path / "run"):
                pass
    with pytest.raises(UsageError, match="match: 'strict' before"):
        async with recorded(tmp_path / "run", config={"match": "role_content"}):
            pass
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace('env = "proxy"', 'env = "echo"'))
    with pytest.raises(UsageError, match="no recorder's"):
        async with recorded(tmp_path / "run"):
            pass


async def test_an_end_that_a_crash_cut_is_done_by_the_next_process(tmp_path: Path) -> None:
    """It was asked for: the session's line is written, with the reward that was given."""
    run = tmp_path / "run"
    async with recorded(tmp_path / "run") as one:
        made = await one.post("/sessions", {"key": "k1"})
        text_of(await one.chat("k1", "hello"))
        await one.post(f"/sessions/{made['id']}/end", {"reward": 0.25})
        turns = (run / "turns.000001.jsonl").read_bytes()
    (run / "turns.000001.jsonl").write_bytes(turns)
    whole = (run / "sessions.jsonl").read_bytes().splitlines(keepends=True)
    (run / "sessions.jsonl").write_bytes(b"".join(whole[:-1]) + whole[-1][:20])  # it had begun to write that
    (run / "rollouts.jsonl").write_bytes(b"")
    async with recorded(run) as one:
        assert len(one.recorder) == 0
    assert [line.session for line in read_sessions(run)] == [made["id"]] * 2
    (rollout,) = read_rollouts(run)
    assert (rollout.reward, len(rollout.turns)) == (0.25, 1)

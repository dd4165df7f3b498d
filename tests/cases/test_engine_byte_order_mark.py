"""Case engine/small_cli, its byte_order_mark: a file of tasks that Windows wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases.folder_kit import command, lines


@pytest.mark.slow
def test_a_byte_order_mark_and_crlf_are_no_obstacle(tmp_path: Path) -> None:
    """Both tasks are played."""
    (tmp_path / "bom.jsonl").write_bytes(b'\xef\xbb\xbf{"target": 1}\r\n{"target": 2}\r\n')
    result = command(
        "run", "guess_number", "--tasks", tmp_path / "bom.jsonl", "--max-tokens", 4, "-o", tmp_path / "run"
    )
    assert result.exit_code == 0, result.stderr
    assert sorted(line["task"]["target"] for line in lines(tmp_path / "run")) == [1, 2]

"""A served model's folder is read where it is on this machine, and never raises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from transports.folder import read_json, vocab_size


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"vocab_size": 99}, 99),
        ({"vocab_size": 99, "text_config": {"vocab_size": 98}}, 98),
        ({"vocab_size": 97, "text_config": {}}, 97),
        ({"vocab_size": "many"}, None),
        ({"text_config": 3}, None),
        ({}, None),
        ([], None),
    ],
)
async def test_a_vocabulary_is_as_large_as_the_configuration_says(
    config: Any, size: int | None, tmp_path: Path
) -> None:
    """Its text part's, where the model has others; what is no number says nothing."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert await vocab_size(str(tmp_path)) == size


async def test_what_is_not_here_is_told_from_what_cannot_be_read(tmp_path: Path) -> None:
    """A name on the hub is no folder; a folder without the file, or with another kind of it, says nothing."""
    assert await read_json(None, "config.json") is None
    assert await read_json("someone/some-model", "config.json") is None
    assert await vocab_size("someone/some-model") is None
    assert await read_json(str(tmp_path), "config.json") == {}
    (tmp_path / "config.json").write_bytes(b"\xff{")
    assert await read_json(str(tmp_path), "config.json") == {}


async def test_a_name_that_no_folder_can_have_is_no_folder() -> None:
    """A server may say anything."""
    for name in ("n" * 5000, "a\0b", ""):
        assert await read_json(name, "config.json") is None

"""A policy's folder is whole when it has its name, and the one before it goes when the servers have the new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollout.errors import ConfigError
from rollout.trainers.trl.folders import Folders, copy_beside


def written(folders: Folders, version: int) -> Path:
    (folders.begin(version) / "model.safetensors").write_bytes(b"weights")
    return folders.finish(version)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_version_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    """A server that looks meanwhile finds the one before it."""
    folders = Folders(tmp_path / "policy")
    folders.begin(1)
    assert names(folders.root) == [".version-1.partial"]
    (folders.partial(1) / "model.safetensors").write_bytes(b"weights")
    assert folders.finish(1) == folders.path(1)
    assert names(folders.root) == ["version-1"]


def test_the_one_before_goes_when_the_new_one_is_loaded(tmp_path: Path) -> None:
    """Not before: where no server loads it they go on with it. The newest stays, for servers that come back."""
    folders = Folders(tmp_path)
    written(folders, 1)
    folders.loaded(1)
    written(folders, 2)
    assert names(tmp_path) == ["version-1", "version-2"]
    folders.loaded(2)
    assert names(tmp_path) == ["version-2"]


def test_what_a_run_that_ended_left_goes_and_nothing_else(tmp_path: Path) -> None:
    """A run that is started again has no older policy on the disk than its own; a folder of somebody else's stays,
    whatever its name."""
    left = Folders(tmp_path)
    written(left, 1)
    left.begin(7)
    (tmp_path / "version-best").mkdir()
    (tmp_path / "notes.txt").touch()
    again = Folders(tmp_path)
    written(again, 2)
    again.loaded(2)
    assert names(tmp_path) == ["notes.txt", "version-2", "version-best"]
    (tmp_path / "version-3").mkdir()
    with pytest.raises(ConfigError, match=r"version-3 is there.*give another folder="):
        written(again, 3)
    assert (tmp_path / "version-3").is_dir()


def test_a_version_is_written_again_from_nothing(tmp_path: Path) -> None:
    """What an interrupted run left of it is not mixed into it."""
    folders = Folders(tmp_path)
    (folders.begin(1) / "stale.safetensors").write_bytes(b"old")
    path = written(folders, 1)
    path = written(folders, 1)
    assert names(path) == [".rollout-policy", "model.safetensors"]


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    """A `save` that wrote an adapter, or nothing, is found before a server is asked."""
    folders = Folders(tmp_path)
    folders.begin(1)
    with pytest.raises(ConfigError, match="no weights were written"):
        folders.finish(1)


def test_what_is_no_weights_is_copied(tmp_path: Path) -> None:
    """Configuration and tokenizer belong to the new weights, too."""
    model, folder = tmp_path / "model", tmp_path / "new"
    folder.mkdir()
    (model / "extra").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json", "old.bin"):
        (model / name).write_text("{}")
    copy_beside(model, folder)
    assert names(folder) == ["config.json", "tokenizer.json"]


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    """By its name."""
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        copy_beside(tmp_path, tmp_path)

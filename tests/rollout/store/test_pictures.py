"""A run keeps each image once, beside its lines, and reading gives the conversations back as they were."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from rollout.chat.canonical import digest
from rollout.chat.messages import Message
from rollout.records import Rollout, StopReason
from rollout.store.folder import ROLLOUTS, RunFolder, read_rollouts
from rollout.store.pictures import IMAGES
from rollout.tokens.trajectory import Root, Trajectory

PIXELS = b"\x89PNG pixels" * 100
URL = "data:image/png;base64," + base64.b64encode(PIXELS).decode()
ODD = "data:image/x-odd+kind;base64," + base64.b64encode(b"odd").decode()
LOOSE = "data:image/png;base64,YR=="
"""Not as an encoder writes it: `YQ==` is the same byte."""
ELSEWHERE = "https://x.example/a.png"


def shown(*urls: str) -> Message:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "look"}]
    parts += [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls[:-1]]
    return Message("user", (*parts, {"type": "image_url", "image_url": urls[-1]}))


def played(number: int, message: Message) -> Rollout:
    tree = Trajectory()
    laid = tree.add_prompt(tree.add_root(Root()), [message], [digest(message)], [1, 2], expansions=None)
    tree.add_sampled(laid.end, Message("assistant", "x"), b"x" * 16, [9], [-1.0])
    return Rollout(
        id=f"r{number}",
        task_id="t",
        task_index=number,
        member=0,
        stop=StopReason.DONE,
        roots=tree.roots,
        nodes=tree.nodes,
        leaves=tree.leaves,
    )


async def written(folder: Path, *rollouts: Rollout) -> None:
    run = RunFolder.create(folder)
    for rollout in rollouts:
        await run.write(rollout)
    run.close()


async def test_an_image_is_kept_once_and_comes_back(tmp_path: Path) -> None:
    """Whoever was shown it, however its part is written; the rollout in memory is left as it was."""
    message = shown(URL, ODD, URL)
    rollouts = [played(number, message) for number in range(3)]
    await written(tmp_path / "run", *rollouts)
    assert all(rollout.nodes[0].message is message for rollout in rollouts)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run" / IMAGES).iterdir()}
    name = f"{hashlib.sha256(PIXELS).hexdigest()}.png"
    assert kept == {name: PIXELS, f"{hashlib.sha256(b'odd').hexdigest()}.bin": b"odd"}
    lines = (tmp_path / "run" / ROLLOUTS).read_text()
    assert base64.b64encode(PIXELS).decode() not in lines
    assert lines.count(name) == 6
    for rollout in read_rollouts(tmp_path / "run"):
        assert rollout.nodes[0].message == message
        assert rollout.nodes[0].digest == digest(message)


@pytest.mark.parametrize("url", [ELSEWHERE, LOOSE, "data:image/png;base64,*", "run-image:../../secret;data:x"])
async def test_what_cannot_come_back_as_it_was_stays_in_the_line(url: str, tmp_path: Path) -> None:
    """An address elsewhere, base64 in another form; and a name that is no image's leads nowhere else."""
    await written(tmp_path / "run", played(0, shown(url)))
    (rollout,) = read_rollouts(tmp_path / "run")
    assert rollout.nodes[0].message == shown(url)
    assert not (tmp_path / "run" / IMAGES).exists()


async def test_an_image_that_was_removed_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The rollout is read all the same."""
    await written(tmp_path / "run", played(0, shown(URL)))
    for path in (tmp_path / "run" / IMAGES).iterdir():
        path.unlink()
    (rollout,) = read_rollouts(tmp_path / "run")
    assert rollout.nodes[0].message is not None
    assert rollout.nodes[0].message.images == (
        f"run-image:{hashlib.sha256(PIXELS).hexdigest()}.png;data:image/png;base64",
    )
    assert "image_missing" in caplog.text


async def test_a_run_without_images_has_no_folder_for_them(tmp_path: Path) -> None:
    """Nothing of it is made anew either."""
    rollout = played(0, Message("user", "x"))
    await written(tmp_path / "run", rollout)
    assert not (tmp_path / "run" / IMAGES).exists()
    assert next(read_rollouts(tmp_path / "run")).nodes == rollout.nodes


async def test_an_image_that_cannot_be_kept_stays_in_the_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of the rollout is lost."""
    run = RunFolder.create(tmp_path / "run")
    (tmp_path / "run" / IMAGES).write_text("no folder")
    await run.write(played(0, shown(URL)))
    run.close()
    (rollout,) = read_rollouts(tmp_path / "run")
    assert rollout.nodes[0].message == shown(URL)
    assert "image_not_kept" in caplog.text

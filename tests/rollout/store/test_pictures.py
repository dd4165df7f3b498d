"""A run keeps each image once, beside its lines, and reading gives the conversations back as they were."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.canonical import digest
from rollout.chat.messages import Message
from rollout.records import Rollout, StopReason
from rollout.store import pictures
from rollout.store.config import FORMAT, FolderConfig
from rollout.store.folder import ROLLOUTS, FolderGone, RunFolder, decode_rollout, encode_rollout, read_rollouts
from rollout.store.index import RunIndex
from rollout.store.pictures import IMAGES, Pictures
from rollout.store.task_list import TaskList
from rollout.tokens.images import image_bytes
from rollout.tokens.trajectory import Root, Trajectory

PIXELS = b"\x89PNG pixels" * 100
URL = "data:image/png;base64," + base64.b64encode(PIXELS).decode()
ODD = "data:image/x-odd+kind;base64," + base64.b64encode(b"odd").decode()
LOOSE = "data:image/png;base64,YR=="
"""Not as an encoder writes it: `YQ==` is the same byte."""
ELSEWHERE = "https://x.example/a.png"
NAME = f"{hashlib.sha256(PIXELS).hexdigest()}.png"
NAMED = f"run-image:{NAME};data:image/png;base64"


def shown(*urls: str) -> Message:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "look"}]
    parts += [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls[:-1]]
    return Message("user", (*parts, {"type": "image_url", "image_url": urls[-1]}))


def played(number: int, message: Message) -> Rollout:
    """A rollout that was shown a message, whose task has its images, too: a data set's row."""
    tree = Trajectory()
    laid = tree.add_prompt(tree.add_root(Root()), [message], [digest(message)], [1, 2], expansions=None)
    tree.add_sampled(laid.end, Message("assistant", "x"), b"x" * 16, [9], [-1.0])
    return Rollout(
        id=f"r{number}",
        task_id="t",
        task_index=number,
        member=0,
        task={"images": list(message.images or ()), "prompt": [message.as_openai()], "n": [number, None]},
        stop=StopReason.DONE,
        messages=[message, Message("assistant", "x")],
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
    assert all(rollout.nodes[0].message is rollout.messages[0] is message for rollout in rollouts)
    assert all(rollout.task["images"][0] is message.content[1]["image_url"]["url"] for rollout in rollouts)  # type: ignore[index]
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run" / IMAGES).iterdir()}
    assert kept == {NAME: PIXELS, f"{hashlib.sha256(b'odd').hexdigest()}.bin": b"odd"}
    lines = (tmp_path / "run" / ROLLOUTS).read_text()
    assert base64.b64encode(PIXELS).decode() not in lines
    assert lines.count(NAME) == 3 * 4 * 2  # in three lines, in four places of each, twice
    for before, rollout in zip(rollouts, read_rollouts(tmp_path / "run"), strict=True):
        assert (rollout.messages, rollout.task) == (before.messages, before.task)
        assert rollout.nodes[0].message == message
        assert rollout.nodes[0].digest == digest(message)


@pytest.mark.parametrize(
    "url",
    [
        ELSEWHERE,
        LOOSE,
        "data:image/png;base64,*",
        "run-image:../../secret;data:x",
        "run-image:a\0b;data:x",
        f"run-image:\0{NAME};data:x",
        f"run-image:{NAME.upper()};data:x",
        f"run-image:{NAME}",
        NAMED,
        f"run-image:run-image:{NAMED}",
    ],
)
async def test_what_cannot_come_back_as_it_was_stays_in_the_line(url: str, tmp_path: Path) -> None:
    """An address elsewhere, base64 in another form; and a name that is no image's leads nowhere else."""
    await written(tmp_path / "run", before := played(0, shown(url)))
    (rollout,) = read_rollouts(tmp_path / "run")
    assert rollout.nodes[0].message == rollout.messages[0] == shown(url)
    assert rollout.task == before.task
    assert not (tmp_path / "run" / IMAGES).exists()


async def test_an_image_that_was_removed_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The rollout is read all the same."""
    await written(tmp_path / "run", played(0, shown(URL)))
    for path in (tmp_path / "run" / IMAGES).iterdir():
        path.unlink()
    (rollout,) = read_rollouts(tmp_path / "run")
    assert rollout.nodes[0].message is not None
    assert rollout.nodes[0].message.images == rollout.messages[0].images == (NAMED,)
    assert rollout.task["images"] == [NAMED]
    assert caplog.text.count("image_missing") == 1
    await written(tmp_path / "other", rollout)
    assert next(read_rollouts(tmp_path / "other")).messages == rollout.messages


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


def picture(number: int) -> str:
    return "data:image/png;base64," + base64.b64encode(b"pixels %d" % number).decode()


@pytest.mark.parametrize("resumed", [False, True])
async def test_images_go_with_a_run_whose_folder_was_renamed(resumed: bool, tmp_path: Path) -> None:
    """All of them, also of an earlier session; what is written later has its images in the new folder."""
    run = RunFolder.create(tmp_path / "run")
    await run.write(played(0, shown(picture(0))))
    if resumed:
        run.close()
        run = RunFolder.resume(tmp_path / "run")
        run.append(FolderConfig(format=FORMAT), TaskList(), (tmp_path / "run" / ROLLOUTS).stat().st_size)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(FolderGone, match=r"run\.kept' now$"):
        await run.write(played(1, shown(picture(1))))
    await run.write(played(2, shown(picture(0), picture(2))))
    run.close()
    shutil.rmtree(tmp_path / "elsewhere")
    messages = [rollout.messages[0] for rollout in read_rollouts(tmp_path / "run.kept")]
    assert messages == [shown(picture(0)), shown(picture(1)), shown(picture(0), picture(2))]
    assert len(list((tmp_path / "run.kept" / IMAGES).iterdir())) == 2  # the second stands whole in its line


async def test_images_that_are_held_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder that was removed: those that the last rollouts were shown. How many are lost is said once."""
    run = RunFolder.create(tmp_path / "run")
    for number in range(3):
        await run.write(played(number, shown(picture(number))))
    monkeypatch.setattr(pictures, "_HELD", 2 * len(picture(0)))
    shutil.rmtree(tmp_path / "run")
    gone = re.escape(", but for 2 of its images, gone with that folder")
    with pytest.raises(FolderGone, match=gone):
        await run.write(played(3, shown(picture(2), picture(3))))
    await run.write(played(4, shown(picture(1), picture(2))))
    run.close()
    found = [rollout.messages[0] for rollout in read_rollouts(tmp_path / "run.kept")]
    assert found[2:] == [shown(picture(2)), shown(picture(2), picture(3)), shown(picture(1), picture(2))]
    assert found[1] == shown(picture(1))  # which came again
    (lost,) = found[0].images or ()
    assert lost == f"run-image:{hashlib.sha256(b'pixels 0').hexdigest()}.png;data:image/png;base64"


async def test_a_folder_that_was_replaced_gets_no_say(tmp_path: Path) -> None:
    """An image that was written into the new one in the meantime is in the folder beside it, too."""
    run = RunFolder.create(tmp_path / "run")
    await run.write(played(0, shown(picture(0))))
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    await written(tmp_path / "run", played(0, shown(picture(7))))
    with pytest.raises(FolderGone):
        await run.write(played(1, shown(picture(1))))
    run.close()
    shutil.rmtree(tmp_path / "run")
    found = [rollout.messages[0] for rollout in read_rollouts(tmp_path / "run.kept")]
    assert found == [shown(picture(0)), shown(picture(1))]


async def test_a_group_that_is_read_holds_each_image_once(tmp_path: Path) -> None:
    """As it did when it was played: however many nodes, messages and members have it."""
    await written(tmp_path / "run", *(played(number, shown(URL, URL)) for number in range(3)))
    for rollouts in (list(read_rollouts(tmp_path / "run")), read_by_index(tmp_path / "run")):
        found = [address for rollout in rollouts for address in addresses(rollout)]
        assert found == [URL] * 24
        assert len(set(map(id, found))) == 1


def read_by_index(folder: Path) -> list[Rollout]:
    with RunIndex(folder) as index:
        return [index.read(located) for located in index.ordered()]


def addresses(rollout: Rollout) -> list[str]:
    """Wherever a rollout has one."""
    messages = [rollout.messages[0], rollout.nodes[0].message]
    found = [address for message in messages if message is not None for address in message.images or ()]
    parts = rollout.task["prompt"][0]["content"][1:]
    return [*found, *rollout.task["images"], parts[0]["image_url"]["url"], parts[1]["image_url"]]


async def test_an_image_of_a_group_is_read_and_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held for that is bounded: an image more than fits is looked at again."""
    asked: list[str] = []

    def counted(url: str) -> bytes | None:
        asked.append(url)
        return image_bytes(url)

    monkeypatch.setattr(pictures, "image_bytes", counted)
    await written(tmp_path / "run", *(played(number, shown(URL, URL)) for number in range(3)))
    assert asked == [URL]
    monkeypatch.setattr(pictures, "_HELD", len(URL))
    await written(tmp_path / "other", *(played(number, shown(URL, ODD)) for number in range(2)))
    assert asked == [URL, URL, ODD, URL]


IMAGE_LIKE = st.sampled_from([URL, ODD, LOOSE, NAMED, f"run-image:{NAMED}", "run-image:", "data:image/png;base64,"])
DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | IMAGE_LIKE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | IMAGE_LIKE, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@given(task=st.dictionaries(st.text(), DATA, max_size=4))
def test_any_task_comes_back(task: dict[str, Any]) -> None:
    """Whatever it says, also what a line says in an image's place; and a line holds no image."""
    with tempfile.TemporaryDirectory() as folder:
        rollout = msgspec.structs.replace(played(0, Message("user", "x")), task=task)
        line = encode_rollout(Pictures(Path(folder)).named(rollout))
        assert rollout.task is task
        assert decode_rollout(line, Path(folder)).task == task
        assert f'"{URL}"' not in line.decode().replace(f'"{URL}":', "")

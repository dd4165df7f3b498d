"""What a run's lines do not hold lies in a file beside them, and is read from there when it is wanted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rollout.errors import UsageError
from rollout.play.session import Session
from rollout.records import Rollout, StopReason
from rollout.store.apart import FIELDS, read_blob
from rollout.store.config import FORMAT, FolderConfig
from rollout.store.folder import ROLLOUTS, FolderGone, RunFolder, decode_rollout, encode_rollout, read_rollouts
from rollout.store.index import RunIndex
from rollout.store.task_list import TaskList
from rollout.tokens.samples import TrainingSample, samples_of_tree
from tests.rollout.play.test_session import play, session
from tests.rollout.test_histories import check_fields
from transports.scripted import reply

ASKED = FolderConfig(format=FORMAT, settings={"routed_experts": True, "sampling_mask": True})


async def talk() -> Session:
    played, _ = session(reply("b"), reply("d"), routed_experts=True, sampling_mask=True)
    await play(played, "a", "c")
    return played


async def played(member: int = 0) -> Rollout:
    of = await talk()
    tree = of.trajectory
    base = {"id": f"0-a-{member}", "task_id": "0-a", "task_index": 0, "member": member, "stop": StopReason.DONE}
    return Rollout(**base, turns=of.turns, roots=tree.roots, nodes=tree.nodes, leaves=tree.leaves)  # type: ignore[arg-type]


def checked(rollout: Rollout) -> TrainingSample:
    (sample,) = rollout.samples()
    assert sample.routed_experts is not None
    assert sample.sampling_mask is not None
    check_fields(sample)
    return sample


async def test_a_rollout_reads_back_with_its_fields(tmp_path: Path) -> None:
    """All of them, from a file of their own: a line has none of their bytes."""
    folder = RunFolder.create(tmp_path / "run", ASKED)
    for member in range(3):
        await folder.write(await played(member), fsync=member == 2)
    folder.close()
    for rollout in read_rollouts(tmp_path / "run"):
        checked(rollout)
    with RunIndex(tmp_path / "run") as index:
        for located in index.ordered():
            checked(index.read(located))
    node = json.loads((tmp_path / "run" / ROLLOUTS).read_text().splitlines()[1])["nodes"][1]
    begins, size = node["routed_experts"]["data"]
    assert 0 < begins < begins + size <= (tmp_path / "run" / FIELDS).stat().st_size


async def test_a_run_that_asks_for_none_has_no_such_file(tmp_path: Path) -> None:
    """Nor has its line any word of it."""
    of, _ = session(reply("b"))
    await play(of, "a")
    tree = of.trajectory
    folder = RunFolder.create(tmp_path / "run")
    await folder.write(
        Rollout(id="a", task_id="a", task_index=0, member=0, roots=tree.roots, nodes=tree.nodes, leaves=tree.leaves)
    )
    folder.close()
    assert not (tmp_path / "run" / FIELDS).exists()
    line = (tmp_path / "run" / ROLLOUTS).read_text()
    assert "routed_experts" not in line
    assert "sampling_mask" not in line


async def test_a_run_that_goes_on_adds_to_the_file(tmp_path: Path) -> None:
    """Behind what a stop left there without a line."""
    folder = RunFolder.create(tmp_path / "run", ASKED)
    await folder.write(await played(0))
    folder.close()
    with (tmp_path / "run" / FIELDS).open("ab") as file:
        file.write(b"torn")
    with RunIndex(tmp_path / "run") as index:
        resumed = RunFolder.resume(tmp_path / "run")
        resumed.append(ASKED, TaskList(), index.end)
    await resumed.write(await played(1))
    resumed.close()
    assert [checked(rollout).rollout_id for rollout in read_rollouts(tmp_path / "run")] == ["0-a-0", "0-a-1"]


@pytest.mark.parametrize("written", [0, 1])
async def test_they_outlive_their_folder(written: int, tmp_path: Path) -> None:
    """They are in the folder beside it, with what is written later, also where none was written before."""
    folder = RunFolder.create(tmp_path / "run", ASKED)
    for member in range(written):
        await folder.write(await played(member))
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FolderGone):
        await folder.write(await played(written))
    await folder.write(await played(written + 1))
    folder.close()
    kept = list(read_rollouts(tmp_path / "run.kept"))
    assert [checked(rollout).rollout_id for rollout in kept] == [f"0-a-{member}" for member in range(written + 2)]


async def test_a_record_that_cannot_be_written_leaves_no_bytes(tmp_path: Path) -> None:
    """The failure that stands for it has none, and the next one's are found."""
    folder = RunFolder.create(tmp_path / "run", ASKED)
    broken = await played(0)
    broken.metrics["loss"] = float("inf")
    await folder.write(broken)
    unwritable = await played(1)
    unwritable.task = {"x": object()}
    await folder.write(unwritable)
    await folder.write(await played(2))
    folder.close()
    first, second, third = read_rollouts(tmp_path / "run")
    assert (first.nodes, second.nodes) == ([], [])
    checked(third)


async def test_a_line_alone_has_them_in_itself() -> None:
    """What writes no folder, such as a trainer's own file, loses none."""
    checked(decode_rollout(encode_rollout(await played())))


async def test_a_file_that_is_gone_is_said_where_it_is_wanted(tmp_path: Path) -> None:
    """The rollouts read as before, and so do their ids."""
    folder = RunFolder.create(tmp_path / "run", ASKED)
    await folder.write(await played())
    folder.close()
    (tmp_path / "run" / FIELDS).unlink()
    (rollout,) = read_rollouts(tmp_path / "run")
    (sample,) = samples_of_tree(rollout.trajectory)
    with pytest.raises(UsageError, match=r"cannot read .*token_fields\.bin"):
        sample.to_numpy()


@pytest.mark.parametrize("value", [[1], [-1, 2], {"a": 1}, [0, "x"], "not base64!"])
def test_what_is_no_place_is_refused(value: object) -> None:
    """A line that somebody changed."""
    with pytest.raises(ValueError):  # noqa: PT011  # base64's own word, or ours
        read_blob(value, Path("run"))

"""What is written reads back whole, also after a crash in the middle of a line."""

from __future__ import annotations

import errno
import math
import shutil
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.chat.messages import Function, MalformedToolCall, Message, ToolCall
from rollout.errors import UsageError
from rollout.records import Failure, FailureKind, Rollout, Route, StopReason, Turn
from rollout.request import Sampling, WeightSpan
from rollout.store.config import FORMAT, FolderConfig
from rollout.store.folder import (
    ROLLOUTS,
    TASKS,
    FolderGone,
    RunFolder,
    decode_rollout,
    default_path,
    encode_rollout,
    new_path,
    read_config,
    read_rollouts,
)
from rollout.store.index import RunIndex
from rollout.store.task_list import TaskList
from rollout.tokens.prefix import FallbackReason
from rollout.tokens.trajectory import Node, Root

FORMAT_2 = Path(__file__).parents[2] / "fixtures" / "run-format-2"

LOGPROBS = st.lists(st.floats(max_value=0, allow_nan=False, allow_infinity=False), max_size=5)
MESSAGES = st.builds(
    Message,
    role=st.sampled_from(["user", "assistant", "tool"]),
    content=st.none() | st.text(min_size=1),
    reasoning_content=st.none() | st.text(min_size=1),
    tool_calls=st.lists(st.builds(ToolCall, function=st.builds(Function, st.text(), st.text())), max_size=2).map(tuple),
    malformed_tool_calls=st.lists(st.builds(MalformedToolCall, st.text(), st.text()), max_size=1).map(tuple),
)


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    nodes = []
    for index in range(draw(st.integers(0, 4))):
        logprobs = draw(LOGPROBS)
        sampled = draw(st.booleans())
        ids = array("i", range(len(logprobs)))
        node = Node(parent=index - 1, message=draw(st.none() | MESSAGES), ids=ids, sampled=sampled)
        if sampled:
            node.logprobs = array("d", logprobs)
            node.weight_versions = (WeightSpan("7", 0, len(ids)),)
        node.digest = draw(st.binary(max_size=16))
        nodes.append(node)
    return Rollout(
        id="0-a-1",
        task_id="0-a",
        task_index=0,
        member=draw(st.integers(0, 9)),
        task={"x": draw(st.text())},
        reward=draw(st.floats(allow_nan=False, allow_infinity=False)),
        stop=StopReason.DONE,
        turns=[Turn(route=Route.TOKEN_IN, node=1, cached_tokens=3, prefix_break=False, fallback=None)],
        messages=draw(st.lists(MESSAGES, max_size=3)),
        roots=[Root(tools=[{"a": 1}], tools_key=b"\x00\xff")],
        nodes=nodes,
        leaves=[index for index, node in enumerate(nodes) if node.sampled],
    )


@pytest.mark.slow
@given(rollouts())
def test_reading_back_loses_nothing(rollout: Rollout) -> None:
    """Ids, logprobs, versions, messages and turns are what they were, to the last bit."""
    assert decode_rollout(encode_rollout(rollout)) == rollout


def test_a_logprob_that_never_was_stays_unknown() -> None:
    """NaN, which JSON does not have, reads back as NaN."""
    node = Node(parent=-1, ids=array("i", [1, 2]), sampled=True, logprobs=array("d", [math.nan, -1.0]))
    kept = decode_rollout(encode_rollout(minimal(nodes=[node], leaves=[0], roots=[Root()])))
    assert math.isnan(kept.nodes[0].logprobs[0])
    assert kept.nodes[0].logprobs[1] == -1.0
    assert len(kept.samples()) == 1


def minimal(member: int = 0, **fields: Any) -> Rollout:
    base = {"id": f"0-a-{member}", "task_id": "0-a", "task_index": 0, "member": member, "stop": StopReason.DONE}
    return Rollout(**{**base, **fields})


async def test_each_rollout_is_on_disk_when_it_ends(tmp_path: Path) -> None:
    """After `write` another reader sees the rollout."""
    folder = RunFolder.create(tmp_path / "run", FolderConfig(settings={"env": "echo", "model": None}))
    for member in range(3):
        await folder.write(minimal(member))
        assert len(list(read_rollouts(tmp_path / "run"))) == member + 1
    folder.close()
    assert read_config(tmp_path / "run") == {"env": "echo"}


@pytest.mark.parametrize("torn", [b'{"id":"0-a-1","ta', b"\x00" * 40, b"\x00" * 40 + b"\n", b'{"id":"0-a-1"}\n'])
async def test_a_torn_last_line_is_cut(torn: bytes, tmp_path: Path) -> None:
    """A crash in the middle of a write, or a power failure, costs that rollout only."""
    folder = RunFolder.create(tmp_path / "run")
    await folder.write(minimal(0))
    folder.close()
    path = tmp_path / "run" / ROLLOUTS
    path.write_bytes(path.read_bytes() + torn)
    with RunIndex(tmp_path / "run") as index:
        assert index.last.keys() == {(0, 0)}
        resumed = RunFolder.resume(tmp_path / "run")
        resumed.append(FolderConfig(), TaskList(), index.end)
    await resumed.write(minimal(1))
    resumed.close()
    assert [rollout.member for rollout in read_rollouts(tmp_path / "run")] == [0, 1]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    """Only the last line may be torn: another one that cannot be read is an error with its number."""
    (tmp_path / ROLLOUTS).write_bytes(b"{broken\n" + encode_rollout(minimal()) + b"\n")
    with pytest.raises(UsageError, match="line 1"):
        list(read_rollouts(tmp_path))


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    """A second run needs another folder, or --resume."""
    RunFolder.create(tmp_path).close()
    with pytest.raises(UsageError, match="--resume"):
        RunFolder.create(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """An unwritable place is one clear line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the run folder"):
        RunFolder.create(tmp_path / "file" / "run")


async def test_a_record_that_cannot_be_written_costs_one_rollout(tmp_path: Path) -> None:
    """It becomes a failure, in the folder as in memory, and the ones after it are written."""
    poisoned = minimal(0, task={"x": object()})
    folder = RunFolder.create(tmp_path / "run")
    await folder.write(poisoned)
    await folder.write(minimal(1))
    folder.close()
    first, second = read_rollouts(tmp_path / "run")
    assert first.failure == poisoned.failure
    assert first.failure is not None
    assert "record cannot be written: NotImplementedError: object" in first.failure.message
    assert (first.id, poisoned.stop, second.ok) == ("0-a-0", None, True)


@pytest.mark.parametrize("fields", [{"reward": math.nan}, {"reward": -math.inf}, {"metrics": {"loss": math.inf}}])
async def test_a_number_that_could_not_be_read_back_is_never_written(fields: dict[str, Any], tmp_path: Path) -> None:
    """A caller that puts NaN into a record has a failure on disk, and the folder is read like any other."""
    folder = RunFolder.create(tmp_path / "run")
    await folder.write(minimal(0, **fields))
    folder.close()
    (read,) = read_rollouts(tmp_path / "run")
    assert read.failure is not None
    assert "which JSON does not have" in read.failure.message
    assert (read.reward, read.metrics) == (0.0, {})


def test_null_rewards_of_format_1_are_failures(tmp_path: Path) -> None:
    """Format 1 wrote a NaN as null: such a folder is read, and that rollout is the environment's failure."""
    line = encode_rollout(minimal(0, metrics={"loss": 0.5, "kl": 0.25}))
    broken = line.replace(b'"reward":0.0', b'"reward":null').replace(b"0.25", b"null")
    (tmp_path / ROLLOUTS).write_bytes(broken + b"\n" + encode_rollout(minimal(1)) + b"\n")
    first, second = read_rollouts(tmp_path)
    assert first.failure == Failure(kind=FailureKind.ENVIRONMENT, message="reward was not a finite number")
    assert (first.metrics, first.stop, second.ok) == ({"loss": 0.5}, None, True)


def test_a_number_that_json_does_not_have_is_no_record() -> None:
    """Nor is one of the places that a reward may come from."""
    for name in ("reward", "step_reward", "score", "group_reward"):
        with pytest.raises(ValueError, match=f"^{name} is inf"):
            encode_rollout(msgspec.structs.replace(minimal(), **{name: math.inf}))


def test_a_folder_of_format_2_is_read_back() -> None:
    """What it has is as it was; what it did not keep is not known, and never a number that nobody recorded."""
    rollouts = list(read_rollouts(FORMAT_2))
    assert [(rollout.reward, rollout.stop) for rollout in rollouts] == [(1.0, StopReason.DONE)] * 4
    for rollout in rollouts:
        assert (rollout.step_reward, rollout.score, rollout.group_reward) == (None, None, None)
        assert [turn.sampling for turn in rollout.turns] == [None] * 3
        (sample,) = rollout.samples()
        kept = zip(sample.temperatures, sample.loss_mask, strict=True)
        assert all(math.isnan(temperature) if sampled else temperature == 1 for temperature, sampled in kept)
        assert [turn.trained for turn in sample.turns] == [turn.completion_tokens for turn in rollout.turns]


def test_what_a_turn_was_given_is_read_back() -> None:
    """Its reward, metrics and settings, and a setting that is not known, which is not one that changes nothing."""
    sampling = Sampling(temperature=0.7, top_p=None, top_k=20)
    turn = Turn(
        route=Route.TOKEN_IN, sampling=sampling, logprobs_mode="raw_logprobs", reward=0.5, metrics={"tools": 1.0}
    )
    rollout = minimal(turns=[turn, Turn(route=Route.TOKEN_IN)], step_reward=0.5, score=1.0, reward=1.0)
    assert decode_rollout(encode_rollout(rollout)) == rollout


def test_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    """Every reader says which format the folder has and which it knows."""
    (tmp_path / ROLLOUTS).write_bytes(b"")
    (tmp_path / "config.toml").write_text(f"format = {FORMAT + 1}\n")
    for read in (lambda: list(read_rollouts(tmp_path)), lambda: RunIndex(tmp_path), lambda: RunFolder.resume(tmp_path)):
        with pytest.raises(UsageError, match=f"newer rollout: format {FORMAT + 1}; this one reads up to {FORMAT}"):
            read()


def test_fields_that_are_not_known_are_passed_over() -> None:
    """Within a format a record may tell more than a reader knows."""
    assert decode_rollout(encode_rollout(minimal()).replace(b'{"id"', b'{"mood":[1],"id"')) == minimal()


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    """While a run writes, neither a new one nor one that goes on gets the folder; a reader does."""
    folder = RunFolder.create(tmp_path / "run", tasks=TaskList([b'{"a":1}']))
    assert (tmp_path / "run" / TASKS).read_bytes() == b'{"a":1}\n'
    with pytest.raises(UsageError, match="is being written by"):
        RunFolder.resume(tmp_path / "run")
    assert list(read_rollouts(tmp_path / "run")) == []
    folder.close()
    RunFolder.resume(tmp_path / "run").close()


def test_a_full_disk_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    """What cannot be written whole is not there, and neither is its draft."""
    folder = RunFolder.create(tmp_path / "run")
    (tmp_path / "run" / "summary.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        folder.write_summary({})
    folder.close()
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_run_folders_never_share_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs in one second have two folders, named by environment and model."""
    monkeypatch.chdir(tmp_path)
    first = default_path("path/to/env.py:Mine", "org/model")
    first.mkdir(parents=True)
    assert first.name.startswith("Mine--model--")
    assert default_path("path/to/env.py:Mine", "org/model") != first
    assert new_path("e", "m") != new_path("e", "m")
    assert default_path("hf:data/p.jsonl:train[:1]", "m").name.startswith("p.jsonl_train_1--m--")
    assert default_path("gymnasium:Taxi-v4", "m").name.startswith("Taxi-v4--m--")


def test_reasons_read_back_as_reasons() -> None:
    """Enums are enums again."""
    turn = Turn(route=Route.MESSAGE_IN, fallback=FallbackReason.NO_MATCH)
    kept = decode_rollout(encode_rollout(minimal(turns=[turn])))
    assert kept.turns[0].fallback is FallbackReason.NO_MATCH


def removed(folder: Path) -> None:
    (folder / ROLLOUTS).unlink()


def replaced(folder: Path) -> None:
    (folder / ROLLOUTS).unlink()
    (folder / ROLLOUTS).write_bytes(b"")


def made_a_folder(folder: Path) -> None:
    (folder / ROLLOUTS).unlink()
    (folder / ROLLOUTS).mkdir()


@pytest.mark.parametrize("lose", [removed, replaced, made_a_folder, shutil.rmtree])
async def test_what_was_written_outlives_its_folder(lose: Callable[[Path], None], tmp_path: Path) -> None:
    """It is whole in a folder beside it, which is locked, goes on with what is written later, and can be resumed."""
    config, tasks = FolderConfig(format=FORMAT, settings={"env": "echo"}), TaskList([b'{"n":0}'])
    folder = RunFolder.create(tmp_path / "run", config, tasks)
    folder.check()
    await folder.write(minimal(0))
    lose(tmp_path / "run")
    with pytest.raises(FolderGone, match=r"run' was removed or replaced while the run wrote it; .*run\.kept' now"):
        await folder.write(minimal(1))
    await folder.write(minimal(2))
    kept = tmp_path / "run.kept"
    assert folder.path == kept
    with pytest.raises(UsageError, match="is being written by"):
        RunFolder.resume(kept)
    folder.close()
    assert [rollout.member for rollout in read_rollouts(kept)] == [0, 1, 2]
    assert read_config(kept) == {"env": "echo"}
    assert (kept / TASKS).read_text() == '{"n":0}\n'
    RunFolder.resume(kept).close()


def test_a_second_loss_is_kept_beside_the_first(tmp_path: Path) -> None:
    """No folder that is there is written into."""
    (tmp_path / "run.kept").mkdir()
    folder = RunFolder.create(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FolderGone, match=r"run\.kept-1"):
        folder.check()
    folder.close()
    assert list((tmp_path / "run.kept").iterdir()) == []


def test_a_file_system_that_does_not_answer_has_lost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is written; only that the file is gone ends a run."""
    folder = RunFolder.create(tmp_path / "run")

    def stat(path: Path) -> None:
        raise OSError(errno.EIO, "later")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        folder.check()
    folder.close()

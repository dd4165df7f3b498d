"""`hf:DATASET`: rows of a file are prompts, and a function of the user's judges the answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from envs.adapters.hf import HuggingFace
from rollout import Engine, EngineConfig
from rollout.registry import env_factory
from tests.live.adapters.kit import MARKS, play, refused, said, same_tasks

pytestmark = MARKS

JUDGES = """
def judge(row, text):
    return float(str(row["answer"]) in text)


async def judge_later(row, text):
    return 0.5
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{"prompt": f"What is {n} + 1?", "answer": n + 1, "level": "easy"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    chats = [{"prompt": [{"role": "user", "content": f"Say {n}."}], "answer": n} for n in range(8)]
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    (tmp_path / "judges.py").write_text(JUDGES)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "holes.jsonl").write_text('{"prompt": "a"}\n{"prompt": null}\n{"prompt": "c"}\n')
    (tmp_path / "broken.json").write_text('{"prompt": ')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_64_rollouts_of_a_file(folder: Path) -> None:
    """Each of 16 rows is asked four times, in two processes, and judged."""
    result = play("hf:rows.jsonl", "-a", "reward=judges.py:judge", "--processes", "2", cwd=folder)
    assert result["turns"] == 64


async def test_an_asynchronous_judge_is_awaited(folder: Path) -> None:
    """Its number is the reward, of a part of the data, and of messages."""
    make = env_factory("hf:chats.json:train[:4]", {"reward": "judges.py:judge_later"})
    async with Engine(EngineConfig(max_tokens=4), make) as engine:
        groups = [group async for group in engine.stream(list(make().tasks(9, 0)))]
    assert [group.rewards for group in groups] == [[0.5]] * 4


def test_rows_are_tasks(folder: Path) -> None:
    """Shuffled by the seed, or in order; as many as there are; of the columns that are asked for."""
    rows = same_tasks(lambda: HuggingFace("rows.jsonl", reward="judges.py:judge"))
    assert all(row["answer"] == row["index"] + 1 for row in rows)
    env = HuggingFace("rows.jsonl:train[:4]", reward="judges.py:judge", shuffle=False, columns="prompt,answer")
    assert list(env.tasks(9, 0)) == [{"index": n, "prompt": f"What is {n} + 1?", "answer": n + 1} for n in range(4)]


def test_a_recorded_answer_has_the_functions_reward(folder: Path) -> None:
    """What the function says of the row and the text, and the prompt is the template's."""
    env = HuggingFace("rows.jsonl", reward="judges.py:judge", template="{level}: {prompt}", system="Be short.")
    task = {"prompt": "What is 4 + 1?", "answer": 5, "level": "easy"}
    assert [message.text for message in env.reset(task)] == ["Be short.", "easy: What is 4 + 1?"]
    assert env.step(said("It is 5.")).reward == 1.0
    assert env.step(said("It is 6.")).reward == 0.0


def test_a_name_may_have_colons(folder: Path) -> None:
    """What is there is the data set, and what stands behind it the split."""
    (folder / "rows.jsonl").rename(folder / "r:o ws.jsonl")
    for dataset, count in (("r:o ws.jsonl", 40), ("r:o ws.jsonl:train[:3]", 3)):
        target = HuggingFace.absolute_target(dataset)
        assert len(list(HuggingFace(target, reward="judges.py:judge").tasks(99, 0))) == count


def test_saved_folders_have_splits_and_parts(folder: Path) -> None:
    """Of what `save_to_disk` wrote, one split or several, a split's rows are taken as they are elsewhere."""
    import datasets

    rows = datasets.Dataset.from_list([{"prompt": str(n)} for n in range(9)])
    rows.save_to_disk(str(folder / "one"))
    datasets.DatasetDict({"train": rows, "test": rows.select(range(4))}).save_to_disk(str(folder / "several"))
    for dataset, count in (("one", 9), ("one:train[2:5]", 3), ("several:test", 4), ("several:train[-2:]", 2)):
        assert len(list(HuggingFace(dataset, reward="judges.py:judge").tasks(99, 0))) == count
    assert "it has: train, test" in refused("hf:several:nope", reward="judges.py:judge")
    assert "one split, train" in refused("hf:one:test", reward="judges.py:judge")
    assert "in rows, not 'train[:50%]'" in refused("hf:one:train[:50%]", reward="judges.py:judge")


@pytest.mark.parametrize(
    ("spec", "given", "words"),
    [
        ("hf:rows.jsonl", {}, "needs -a reward=VALUE"),
        ("hf:rows.jsonl", {"reward": "judges.py:judg"}, "did you mean 'judge'"),
        ("hf:rows.jsonl", {"reward": "judges.py:judge", "prompt": "question"}, "it has: prompt, answer, level"),
        ("hf:rows.jsonl:test", {"reward": "judges.py:judge"}, 'Unknown split "test"'),
        ("hf:rows.jsonl", {"reward": "judges.py:judge", "columns": "level"}, "leaves out 'prompt', which prompt needs"),
        ("hf:rows.jsonl", {"reward": "judges.py:judge", "columns": "nope"}, "name one by -a columns="),
        ("hf:rows.jsonl", {"reward": "judges.py:judge", "template": "{nope}"}, "name one by -a template="),
        ("hf:rows.jsonl", {"reward": "judges.py:judge", "template": "{prompt"}, "cannot be read: expected '}'"),
        ("hf:rows.jsonl", {"reward": "judges.py:judge", "template": "{}"}, "names no column: write {COLUMN}"),
        ("hf:empty.jsonl", {"reward": "judges.py:judge"}, "empty.jsonl has no rows"),
        ("hf:broken.json", {"reward": "judges.py:judge"}, "JSON parse error"),
        ("hf:no-such.JSONL", {"reward": "judges.py:judge"}, "there is no file 'no-such.JSONL'"),
        ("hf:rows.jsonl", {"reward": "json:loads"}, "is called with (row, text)"),
        ("hf:rows.jsonl", {"reward": "judges.py:judge", "prompt": "answer"}, "must be text or a list of messages"),
        ("hf:holes.jsonl", {"reward": "judges.py:judge"}, "row 1: column 'prompt' must be text or a list of messages"),
        ("hf:rows.jsonl", {"reward": "judges.py:judge", "template": "{level[x]}"}, "cannot be filled: TypeError"),
        ("hf:rows.jsonl", {"reward": "judges.py:judge", "config": "main"}, "has no configurations"),
        ("hf:judges.py", {"reward": "judges.py:judge"}, "a file of no known kind"),
    ],
)
def test_mistakes_are_one_line(folder: Path, spec: str, given: dict[str, str], words: str) -> None:
    """Each names the input and what would be right."""
    assert words in refused(spec, **given)

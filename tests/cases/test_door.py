"""What comes in at any door goes through a run and comes back from disk, or is refused there by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollout import Engine, EngineConfig, Env, Group, Step, user
from rollout.chat.messages import Message
from rollout.door import plain, well_formed
from rollout.errors import ConfigError
from rollout.records import FailureKind, Rollout
from rollout.store.folder import RunFolder, encode_rollout, read_rollouts
from tests.log_kit import capture_logs
from transports.scripted import ScriptedTransport, reply

TEXTS = st.text(st.characters(exclude_categories=()), max_size=12)
FLOATS = st.floats()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(2**90), 2**90) | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


class Case(msgspec.Struct, kw_only=True):
    """What one rollout's environment does."""

    task: dict[str, Any]
    content: Any
    extra: Any
    reward: Any
    metrics: dict[str, Any]
    error: str | None
    answer: str


CASES = st.builds(
    Case,
    task=st.dictionaries(TEXTS, JSON, max_size=3),
    content=TEXTS | JSON,
    extra=JSON,
    reward=FLOATS | st.integers(),
    metrics=st.dictionaries(TEXTS, FLOATS, max_size=2),
    error=st.none() | TEXTS,
    answer=st.text(max_size=12),
)


class Anything(Env):
    """Says and does what its task tells."""

    blocks = False
    cases: Sequence[Case] = ()

    def reset(self, task: Mapping[str, Any]) -> Sequence[object]:
        self.case = self.cases[task["at"]]
        return [user("hi"), {"role": "user", "content": "x", "extra_key": self.case.extra}]

    def step(self, message: Message) -> Step:
        if self.case.error is not None:
            raise ValueError(self.case.error)
        said: Any = {"role": "user", "content": self.case.content}
        return Step(messages=[said], done=True, reward=self.case.reward, metrics=self.case.metrics)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(CASES, min_size=1, max_size=5))
def test_whatever_comes_in_comes_back_from_disk(cases: list[Case]) -> None:
    """Each task has one record, equal to the rollout that was handed out; what was refused is the environment's."""
    Anything.cases = cases
    # A task that is refused ends its stream, which is another claim: here it is played without what it holds.
    came_in = [{**(case.task if _is_taken(case.task) else {}), "at": at} for at, case in enumerate(cases)]
    transport = ScriptedTransport([reply(case.answer) for case in cases])
    transport._info.can_tokenize = True
    config = EngineConfig(transport="scripted", renderer="server", concurrency=1)
    with capture_logs():  # a traceback for each failure takes longer than its rollout
        groups, read = anyio.run(_played_and_read, config, Anything, came_in, transport)
    assert [rollout.task for rollout in read] == [plain(task) for task in came_in]
    for group, record in zip(groups, read, strict=True):
        (rollout,) = group.rollouts
        assert encode_rollout(record) == encode_rollout(rollout)
        assert record.failure is None or record.failure.kind is FailureKind.ENVIRONMENT
        assert math.isfinite(record.reward)
        case = cases[record.task_index]
        if case.error is not None and record.turns:
            assert record.failure is not None
            assert well_formed(case.error) in record.failure.message
        if record.ok and isinstance(case.content, str):
            assert record.messages[-1].text == well_formed(case.content)


class Told(Env):
    """Says and does what its task tells: also in a process of its own."""

    def reset(self, task: Mapping[str, Any]) -> Sequence[object]:
        self.task = task
        return [{"role": "user", "content": task["text"], "extra_key": task}]

    def step(self, message: Message) -> Step:
        if self.task["raises"]:
            raise ValueError(self.task["text"])
        reward = float(self.task["reward"])
        return Step(messages=[user(self.task["text"])], done=True, reward=reward, metrics={self.task["text"]: 1})


TOLD: list[dict[str, Any]] = [
    {"id": text * 500, "text": text, "reward": reward, "raises": raises, "number": number}
    for text in ("naïve\n", "caf\udce9", "\ud83d", "👋", "\x00\x1b[31m", "<|im_end|>", "")
    for raises in (False, True)
    for reward, number in (("0.5", 2**70), ("nan", -(2**90)), ("1e308", 5e-324))
]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_whatever_comes_in_comes_back_from_other_processes(processes: int) -> None:
    """Texts, ids, numbers and exceptions cross to the environment, to the server's headers, and back to the disk."""
    config = EngineConfig(concurrency=8, processes=processes, max_tokens=4)
    groups, read = anyio.run(_played_and_read, config, Told, TOLD, None)
    assert [rollout.task for rollout in read] == [plain(task) for task in TOLD]
    for task, group, record in zip(TOLD, groups, read, strict=True):
        assert encode_rollout(record) == encode_rollout(group.rollouts[0])
        assert record.turns
        assert record.messages[0].extra["extra_key"] == plain(task)
        assert record.ok is not (task["raises"] or task["reward"] == "nan")
        assert record.failure is None or record.failure.kind is FailureKind.ENVIRONMENT


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"id": "a", "tags": {1}}, r"task 1 \(id 'a'\) cannot be written: tags is of type set"),
        ({"deep": [math.nan]}, r"task 1 cannot be written: deep\[0\] is nan"),
        ({"x": object()}, "task 1 cannot be written: x is of type object"),
        ([1], "task 1 is of type list"),
    ],
)
async def test_a_task_that_cannot_be_written_is_refused_by_name(task: Any, said: str) -> None:
    """A list with such a task raises before anything of it is played; a submission raises to its caller alone."""
    transport = ScriptedTransport([reply("x") for _ in range(4)])
    async with Engine(EngineConfig(), Short, transport=transport) as engine:
        with pytest.raises(ConfigError, match=said):
            await _groups(engine, [{"n": 0}, task])
        assert not transport.requests
        good = await engine.submit({"n": 0})
        with pytest.raises(ConfigError, match=said):
            await engine.submit(task)
        assert (await good.result()).finished


class Short(Env):
    """One turn."""

    blocks = False

    def reset(self, task: Mapping[str, Any]) -> Sequence[object]:
        return [user("hi")]

    def step(self, message: Message) -> Step:
        return Step(done=True, reward=1.0)


def _is_taken(task: Mapping[str, Any]) -> bool:
    try:
        plain(task)
    except ValueError:
        return False
    return True


async def _groups(engine: Engine, tasks: Sequence[Any]) -> list[Group]:
    return [group async for group in engine.stream(tasks)]


async def _played_and_read(
    config: EngineConfig, env: type[Env], tasks: Sequence[Any], transport: ScriptedTransport | None
) -> tuple[list[Group], list[Rollout]]:
    """The groups, and what lies on disk of them, by task."""
    with TemporaryDirectory() as path:
        folder = RunFolder.create(Path(path) / "run")
        async with Engine(config, env, transport=transport) as engine:
            groups = await _groups(engine, tasks)
        for group in groups:
            for rollout in group.rollouts:
                await folder.write(rollout)
        folder.close()
        read = sorted(read_rollouts(Path(path) / "run"), key=lambda rollout: rollout.task_index)
        return sorted(groups, key=lambda group: group.task_index), read

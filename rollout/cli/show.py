"""`rollout show`: rollouts of a run as conversations, for people.

    == 3-9a1c04fe-0   task 3, member 0   reward 0.25   done   2 turns, 117 sampled tokens, 1.4 s
    task {"target": 50}

    user
      Guess my number.

    assistant   turn of 63 tokens
      (thinks) Halves are quickest.
      50

Texts come from models and environments, so whatever would steer a terminal is escaped. Long ones are cut in their
middle, and how much is left out is said.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from rollout.chat.messages import Message
from rollout.errors import UsageError
from rollout.records import Rollout, Turn
from rollout.store.folder import EVENTS
from rollout.store.index import Located, RunIndex

#: How many are shown where nothing is said.
DEFAULT_LIMIT = 3

#: A longer text is cut: so much of its beginning and of its end stays.
_HEAD_CHARS, _TAIL_CHARS = 1_200, 400

#: What would move a cursor, change colours or the order of letters: all controls but the newline and the tab.
_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Choice(msgspec.Struct, kw_only=True):
    """Which rollouts are shown."""

    worst: int | None = None
    """So many of the finished ones, the lowest rewards first."""
    failed: bool = False
    """Only those that failed."""
    task: str | None = None
    """Those of one task, by its id or its index, or one rollout by its id."""
    limit: int | None = DEFAULT_LIMIT
    """So many at most; None is all."""


class Shown(msgspec.Struct, kw_only=True):
    """One rollout with its conversation, as `--json` prints it: without token ids."""

    id: str
    task_id: str
    task_index: int
    member: int
    task: Mapping[str, Any]
    reward: float | None
    """None where nobody gave one."""
    stop: str | None
    failure: Any
    metrics: Mapping[str, float]
    turns: int
    sampled_tokens: int
    wall_s: float
    messages: list[Message]
    traceback: str | None


def show(run: Path, choice: Choice, *, full: bool, as_json: bool) -> Iterator[str]:
    """The text, piece by piece; one object a line where it is JSON. Raises UsageError for what is not there."""
    with RunIndex(run) as index:
        found = chosen(index, choice)
        limit = choice.worst if choice.worst is not None else choice.limit
        taken = found[:limit]
        raised = tracebacks(run, {located.id for located in taken if located.failure})
        for located in taken:
            rollout = index.read(located)
            if as_json:
                yield msgspec.json.encode(_shown(rollout, raised.get(rollout.id))).decode() + "\n"
            else:
                yield "\n".join(conversation(rollout, raised.get(rollout.id), full=full)) + "\n\n"
        if not as_json:
            yield _hint(index, choice, len(taken), len(found))


def chosen(index: RunIndex, choice: Choice) -> list[Located]:
    """The rollouts that a choice means, in order. Raises UsageError for a task that is not there."""
    found = index.ordered()
    if choice.task is not None:
        found = [at for at in found if choice.task in (at.task_id, at.id, str(at.task_index))]
        if not found:
            some = ", ".join(dict.fromkeys(at.task_id for at in index.ordered()[:3])) or "none that has ended"
            raise UsageError(f"{str(index.folder)!r} has no rollout of task {choice.task!r}; it has: {some}")
    if choice.failed:
        found = [at for at in found if at.failure]
    if choice.worst is not None:
        if choice.worst < 1:
            raise UsageError(f"--worst must be 1 or more, not {choice.worst}")
        judged = [at for at in found if choice.failed or (not at.failure and at.reward_known)]
        found = sorted(judged, key=lambda at: at.reward)
    return found


def tracebacks(run: Path, ids: set[str]) -> dict[str, str]:
    """What events.log has of failures of these rollouts: the last traceback of each. The log is read once."""
    found: dict[str, str] = {}
    path = run / EVENTS
    if not ids or not path.is_file():
        return found
    with path.open("rb") as lines:
        for line in lines:
            if b'"exception"' not in line:
                continue
            try:
                event = msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.DecodeError, UnicodeDecodeError):  # its last line may be torn
                continue
            if event.get("rollout") in ids and isinstance(event.get("exception"), str):
                found[event["rollout"]] = event["exception"]
    return found


def conversation(rollout: Rollout, traceback: str | None, *, full: bool) -> Iterator[str]:
    """The lines of one rollout."""
    tokens = sum(turn.completion_tokens for turn in rollout.turns)
    failure = rollout.failure
    end = f"failed: {failure.kind}" if failure else rollout.stop.value if rollout.stop else "unfinished"
    reward = f"{rollout.reward:g}" if rollout.reward_known else "unknown"
    yield clean(
        f"== {rollout.id}   task {rollout.task_index}, member {rollout.member}   reward {reward}   {end}   "
        f"{_many(len(rollout.turns), 'turn')}, {_many(tokens, 'sampled token')}, {rollout.timing.wall_s:.1f} s"
    )
    yield _cut(f"task {msgspec.json.encode(rollout.task).decode()}", full)
    if rollout.metrics:
        yield clean("metrics " + ", ".join(f"{name} {value:g}" for name, value in rollout.metrics.items()))
    for name, text in rollout.notes.items():
        if text.strip():
            yield clean(f"{name}:")
            yield _cut(text.rstrip(), full)
    agents = Counter(turn.agent for turn in rollout.turns)
    if len(agents) > 1:
        named = ", ".join(f"{name} {_many(count, 'turn')}" for name, count in agents.items() if name)
        yield clean(f"asked by others, too ({named}): what stands here is its own agent's last conversation")
    elif rollout.step_reward is None and (branches := len(rollout.samples())) > 1:
        yield f"an agent's {branches} branches: what stands here is the last one"
    elif len(rollout.leaves) > 1 and len(_answers(rollout.messages)) != len(rollout.turns):
        yield "the conversation was rewritten on its way: what stands here is how it ended"
    turns = iter(rollout.turns if len(_answers(rollout.messages)) == len(rollout.turns) else ())
    for message in rollout.messages:
        yield ""
        yield from _message(message, next(turns, None) if message.role == "assistant" else None, full)
    if failure is not None:
        where = f" in turn {failure.turn}" if failure.turn is not None else ""
        yield ""
        yield clean(f"failed{where}: {failure.kind}")
        yield _indented(f"{failure.error}: {failure.message}" if failure.error else failure.message, full)
        if traceback is not None:
            yield _indented(traceback, full)


def clean(text: str) -> str:
    """The text with what steers a terminal escaped."""
    return _STEERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def _message(message: Message, turn: Turn | None, full: bool) -> Iterator[str]:
    said = [f" {message.name}" if message.name else "", f" ({message.tool_call_id})" if message.tool_call_id else ""]
    if turn is not None:
        said.append(f"   turn of {_many(turn.completion_tokens, 'token')}")
        if turn.finish_reason != "stop":
            said.append({"length": ", cut off at max_tokens"}.get(turn.finish_reason, f", {turn.finish_reason}"))
        if turn.reward:
            said.append(f", reward {turn.reward:g}")
    yield clean(message.role + "".join(said))
    if message.reasoning_content:
        yield _indented(f"(thinks) {message.reasoning_content}", full)
    if message.content:
        yield _indented(message.content if isinstance(message.content, str) else _parts(message.content), full)
    for call in message.tool_calls:
        called = f"-> {call.function.name}({call.function.arguments})"
        yield _indented(f"{called}   {call.id}" if call.id else called, full)
    for malformed in message.malformed_tool_calls:
        yield _indented(f"-> malformed call ({malformed.reason}): {malformed.raw}", full)


def _parts(parts: Iterable[Mapping[str, Any]]) -> str:
    return "\n".join(
        str(part["text"]) if isinstance(part.get("text"), str) else f"[{part.get('type', 'part')}]" for part in parts
    )


def _indented(text: str, full: bool) -> str:
    return textwrap.indent(_cut(text, full), "  ")


def _cut(text: str, full: bool) -> str:
    left = len(text) - _HEAD_CHARS - _TAIL_CHARS
    if full or left <= 0:
        return clean(text)
    gap = f"[... {left:,} characters left out, --full shows them ...]"
    return f"{clean(text[:_HEAD_CHARS])}\n{gap}\n{clean(text[-_TAIL_CHARS:])}"


def _answers(messages: Iterable[Message]) -> list[Message]:
    return [message for message in messages if message.role == "assistant"]


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _hint(index: RunIndex, choice: Choice, taken: int, found: int) -> str:
    if not len(index):
        return "no rollout has ended yet\n"
    if not found:
        return f"none of its {_many(len(index), 'rollout')} failed\n" if choice.failed else "no rollout finished\n"
    if taken == found:
        return ""
    return f"{taken} of {_many(found, 'rollout')}: -n 0 shows all, --worst N, --failed and --task ID choose\n"


def _shown(rollout: Rollout, traceback: str | None) -> Shown:
    return Shown(
        id=rollout.id,
        task_id=rollout.task_id,
        task_index=rollout.task_index,
        member=rollout.member,
        task=rollout.task,
        reward=rollout.reward if rollout.reward_known else None,
        stop=rollout.stop.value if rollout.stop else None,
        failure=rollout.failure,
        metrics=rollout.metrics,
        turns=len(rollout.turns),
        sampled_tokens=sum(turn.completion_tokens for turn in rollout.turns),
        wall_s=rollout.timing.wall_s,
        messages=rollout.messages,
        traceback=traceback,
    )

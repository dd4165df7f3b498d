"""`python -m benchmarks.embedded_train.evaluate [DIR]`: plays the bundled environments, token-in, by numpy."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.embedded_train.dialogues import tail, tools_header
from envs.calculator import Calculator
from envs.echo import Echo
from envs.guess_number import GuessNumber
from rollout.chat.messages import Function, MalformedToolCall, Message, ToolCall
from rollout.env import Env, Step, Task
from transports.embedded import MODEL_DIR
from transports.embedded.chat import ChatFormat
from transports.embedded.engine import Engine
from transports.embedded.jobs import Completion, Job
from transports.embedded.model import Model
from transports.embedded.sampling import SamplingParams

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.S)
_CALL_BODY = re.compile(r'\s*\{"name": "([^"]*)", "arguments": (.*)\}\s*', re.S)


@dataclass(frozen=True)
class Report:
    """What a number of games of one environment came to."""

    name: str
    games: int
    reward: float
    """Mean reward."""
    turns: float
    """Mean assistant turns per game."""
    tokens: float
    """Mean sampled tokens per turn."""
    ended: float
    """Share of turns that ended by the stop token."""
    metrics: dict[str, float]

    def __str__(self) -> str:
        metrics = ", ".join(f"{name} {value:.2f}" for name, value in sorted(self.metrics.items()))
        return (
            f"{self.name}: reward {self.reward:.3f} over {self.games} games, {self.turns:.1f} turns of "
            f"{self.tokens:.1f} tokens, {self.ended:.1%} ended by themselves; {metrics}"
        )


@dataclass
class _Game:
    env: Env
    ids: list[int]
    reward: float = 0.0
    turns: int = 0
    tokens: int = 0
    ended: int = 0
    done: bool = False
    metrics: dict[str, float] = field(default_factory=dict)


def evaluate(
    folder: Path,
    make: Callable[[], Env],
    *,
    games: int,
    seed: int,
    temperature: float = 1.0,
    thinking: bool = True,
    max_tokens: int = 160,
) -> Report:
    """Mean results of `games` games, all played at once; the same tokens for the same seed and machine."""
    chat, engine = ChatFormat(folder), Engine(Model.load(folder))
    engine.start()
    try:
        played = [_open(make(), task, chat, thinking) for task in make().tasks(games, seed)]
        while active := [game for game in played if not game.done]:
            futures = [
                engine.submit(_job(game, seed + 1000 * index + game.turns, temperature, max_tokens, engine))
                for index, game in enumerate(active)
            ]
            for game, future in zip(active, futures, strict=True):
                _advance(game, future.result(), chat, thinking)
    finally:
        engine.close()
    turns = sum(game.turns for game in played)
    names = sorted({name for game in played for name in game.metrics})
    return Report(
        name=type(played[0].env).__name__,
        games=games,
        reward=sum(game.reward for game in played) / games,
        turns=turns / games,
        tokens=sum(game.tokens for game in played) / turns,
        ended=sum(game.ended for game in played) / turns,
        metrics={name: sum(game.metrics.get(name, 0.0) for game in played) / games for name in names},
    )


def read_answer(text: str) -> Message:
    """An assistant message from sampled text: thinking, tool calls, and what remains."""
    thinking, closed, rest = text.rpartition("</think>")
    body = rest.strip() if closed else text
    calls: list[ToolCall] = []
    malformed: list[MalformedToolCall] = []
    for raw in _CALL.findall(body):
        if (match := _CALL_BODY.fullmatch(raw)) is not None:
            calls.append(ToolCall(function=Function(match[1], match[2]), id=f"call_{len(calls)}"))
        else:
            malformed.append(MalformedToolCall(raw, "invalid_json"))
    return Message(
        "assistant",
        _CALL.sub("", body).strip(),
        thinking.removeprefix("<think>").strip() or None,
        tool_calls=tuple(calls),
        malformed_tool_calls=tuple(malformed),
    )


def _open(env: Env, task: Task, chat: ChatFormat, thinking: bool) -> _Game:
    opening = env.reset(task)
    assert isinstance(opening, Sequence)
    text = tools_header(env.tools) + tail([Message.of(message) for message in opening])
    return _Game(env, chat.encode(text + _prefill(thinking)))


def _job(game: _Game, seed: int, temperature: float, max_tokens: int, engine: Engine) -> Job:
    params = SamplingParams(
        max_tokens=max_tokens, temperature=temperature, seed=seed, stop_ids=frozenset(engine.model.config.eos_ids)
    )
    return Job(request_id=str(seed), prompt_ids=game.ids, params=params)


def _advance(game: _Game, completion: Completion, chat: ChatFormat, thinking: bool) -> None:
    game.turns += 1
    game.tokens += len(completion.ids)
    game.ended += completion.finish_reason == "stop"
    step = game.env.step(read_answer(chat.decode(completion.ids)))
    assert isinstance(step, Step)
    game.reward += step.reward
    game.metrics |= step.metrics
    game.done = step.done
    close = [] if completion.finish_reason == "stop" else chat.encode("<|im_end|>")
    answer = tail([Message.of(message) for message in step.messages])
    game.ids = [*game.ids, *completion.ids, *close, *chat.encode("\n" + answer + _prefill(thinking))]


def _prefill(thinking: bool) -> str:
    return "" if thinking else "<think>\n\n</think>\n\n"


def all_reports(folder: Path, *, games: int, seed: int) -> Iterator[Report]:
    """Each bundled environment at its defaults and temperature 1."""
    yield evaluate(folder, GuessNumber, games=games, seed=seed)
    yield evaluate(folder, Calculator, games=games, seed=seed)
    yield evaluate(folder, Echo, games=max(games // 8, 1), seed=seed)


def main(argv: list[str] | None = None) -> int:
    """Prints a line for each environment."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedded_train.evaluate", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=MODEL_DIR)
    parser.add_argument("--games", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(argv)
    for report in all_reports(arguments.folder, games=arguments.games, seed=arguments.seed):
        print(report, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`textarena:ID`: games for one and for two, the policy against itself and against fixed opponents."""

from __future__ import annotations

import asyncio
import functools
import random
import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import textarena

from envs.adapters.games import Game, TextArena
from rollout import Engine, EngineConfig
from rollout.records import Rollout
from tests.live.adapters.kit import MARKS, play, refused, same_tasks
from transports.scripted import ScriptedTransport, reply

pytestmark = MARKS

#: Games that load on Python 3.11 without a download, and end.
ALONE = (
    *("2048-v0-mega-easy", "Bandit-v0", "Blackjack-v0", "FifteenPuzzle-v0", "FrozenLake-v0", "GuessTheNumber-v0"),
    *("LightsOut-v0", "Mastermind-v0", "Minesweeper-v0", "PegJump-v0", "Secretary-v0", "Sudoku-v0", "TowerOfHanoi-v0"),
)
FOR_TWO = (
    *("TicTacToe-v0", "ConnectFour-v0", "Nim-v0", "KuhnPoker-v0", "IteratedPrisonersDilemma-v0", "Othello-v0-tiny"),
    *("Breakthrough-v0-tiny", "ColonelBlotto-v0", "PigDice-v0", "SimpleNegotiation-v0", "UltimateTicTacToe-v0"),
    *("WildTicTacToe-v0", "MemoryGame-v0", "SimpleTak-v0", "QuantumTicTacToe-v0"),
)

#: Why others do not.
NOT_HERE = {
    "Chess-v0": "needs Python 3.12 or newer, in which its file is written: SyntaxError",
    "Checkers-v0": "needs Python 3.12 or newer",
    "UsedCarNegotiation-v0": "FileNotFoundError",
    "BabyAiText-v0": "No module named 'gym'",
    "SecretMafia-v0": "Player count must be between 5 and 15",
    "TwentyQuestions-v0": "OPENROUTER_API_KEY",
}

BOTS = """
import re, threading

held = threading.Event()


def first_free(seen):
    return re.findall(r"'(\\[\\d\\])'", seen.rpartition("[GAME]")[2])[0]


async def first_free_later(seen):
    return first_free(seen)


class Bot:
    def __init__(self):
        self.asked = 0

    def __call__(self, seen):
        self.asked += 1
        return first_free(seen)


def hangs(seen):
    held.wait()
"""

WON = ["[0]", "[3]", "[1]", "[4]", "[2]"]


@pytest.fixture
def bots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bots.py").write_text(BOTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def played(moves: Iterable[str], id: str, *, tasks: Sequence[Any] = (), **given: Any) -> list[Rollout]:
    make = functools.partial(TextArena, id, **given)
    transport = ScriptedTransport([reply(move) for move in moves])
    config = EngineConfig(concurrency=1)
    async with Engine(config, make, transport=transport) as engine:
        groups = [group async for group in engine.stream(list(tasks or make().tasks(1, 0)))]
    return [rollout for group in groups for rollout in group.rollouts]


def test_64_rollouts_against_itself(tmp_path: Path) -> None:
    """Each of them to its end, whatever the tiny model says, in two processes."""
    result = play("textarena:TicTacToe-v0", "--processes", "2", cwd=tmp_path)
    assert result["stops"] == {"done": 64}
    assert "moves" in result["metrics"]


async def test_each_side_has_a_branch_and_a_reward() -> None:
    """Five moves by the same model: player 0's three win, player 1's two lose, and each is extended token-in."""
    (rollout,) = await played(WON, "TicTacToe-v0")
    assert rollout.failure is None
    assert (rollout.reward, [turn.agent for turn in rollout.turns]) == (
        1.0,
        ["player 0", "player 1"] * 2 + ["player 0"],
    )
    assert {sample.agent: sample.reward for sample in rollout.samples()} == {"player 0": 1.0, "player 1": -1.0}
    assert rollout.metrics == {"moves": 5.0, "invalid": 0.0}
    assert "Player 0" in rollout.notes["player 0 reason"]


async def test_a_fixed_opponent_is_not_trained_on(bots: Path) -> None:
    """A function, one that is asynchronous, and a class play the other side; sides are taken in turn."""
    for opponent in ("first_free", "first_free_later", "Bot"):
        make = functools.partial(TextArena, "TicTacToe-v0", opponent=f"bots.py:{opponent}")
        tasks = list(make().tasks(2, 0))
        assert [task["side"] for task in tasks] == [0, 1]
        first, second = await played(
            ["[8]", "[4]", "[6]", "[7]", "[8]", "[4]", "[3]", "[5]"],
            "TicTacToe-v0",
            tasks=tasks,
            opponent=f"bots.py:{opponent}",
        )
        assert first.failure is second.failure is None
        assert {turn.agent for turn in first.turns} == {"player 0"}
        assert {turn.agent for turn in second.turns} == {"player 1"}
        assert first.reward in (1.0, -1.0, 0.0)


@pytest.mark.parametrize("id", [*ALONE, *FOR_TWO])
def test_games_begin_and_end(id: str) -> None:
    """Of a seed each begins in the same way, tells its sides what they are to do, and ends with a reward."""
    tasks = same_tasks(lambda: TextArena(id), 1)
    games = [Game(id, {}, 0, tasks[0]["seed"]) for _ in range(2)]
    turns = [game.turn() for game in games]
    assert turns[0] == turns[1]
    assert games[0].players == (1 if id in ALONE else 2)
    assert len(turns[0].told) > 40
    chance = random.Random(0)
    turn, state = turns[0], random.getstate()
    for _ in range(400):
        known = re.findall(r"\[[^\]\s]+\]", turn.told)
        turn = games[0].move(chance.choice(known) if known else "[1]")
        if turn.done:
            break
    assert turn.done
    rewards, _ = games[0].end()
    assert sorted(rewards) == list(range(games[0].players))
    assert random.getstate() == state


def test_rewards_and_words_are_the_games_own() -> None:
    """The same moves from the same seed, by the package alone: the same rewards, and all of its words."""
    game = Game("KuhnPoker-v0", {}, 0, 5)
    random.seed(5)
    own = textarena.make("KuhnPoker-v0-raw")
    own.reset(num_players=2, seed=5)
    turn, done = game.turn(), False
    while not turn.done:
        player, observed = own.get_observation()
        assert turn.player == player
        assert [text for sender, text, _ in observed if sender != player and text not in turn.told] == []
        done, _ = own.step("[check]" if "[check]" in turn.told else "[fold]")
        turn = game.move("[check]" if "[check]" in turn.told else "[fold]")
        assert turn.done == done
    assert game.end()[0] == {player: float(reward) for player, reward in own.close()[0].items()}


@pytest.mark.parametrize("id", NOT_HERE)
def test_games_that_cannot_be_played_say_why(id: str) -> None:
    """In one line, before anything is played."""
    assert NOT_HERE[id] in refused(f"textarena:{id}")


@pytest.mark.parametrize(
    ("id", "given", "words"),
    [
        ("ConnectFour-v0", {"is_open": "maybe"}, "-a is_open='maybe': Expected `bool`"),
        ("ConnectFour-v0", {"row": "3"}, "has no setting 'row', did you mean"),
        ("TicTacToe-v0", {"opponent": "operator:add"}, "is called with (seen)"),
        ("TicTacTo-v0", {}, "did you mean 'TicTacToe-v0'"),
        ("TicTacToe-v0", {"opponent": "random"}, "must be file.py:function"),
        ("TicTacToe-v0", {"side": "2"}, "has 2 players: side=2"),
        ("TicTacToe-v0", {"boards": "2"}, "has no setting 'boards'; it has: none"),
    ],
)
def test_mistakes_are_one_line(id: str, given: dict[str, str], words: str) -> None:
    """Each says what there is."""
    assert words in refused(f"textarena:{id}", **given)


async def test_an_opponent_that_hangs_costs_its_own_rollout(bots: Path) -> None:
    """It is given up at the rollout's deadline; the engine closes, and a game that is played after it has its end."""
    make = functools.partial(TextArena, "TicTacToe-v0", opponent="bots.py:hangs", side=0)
    config = EngineConfig(concurrency=4, episode_timeout_s=1.0)
    transport = ScriptedTransport([reply("[4]")] * 4)
    async with asyncio.timeout(60), Engine(config, make, transport=transport) as engine:
        groups = [group async for group in engine.stream(list(make().tasks(4, 0)))]
    import bots as module  # type: ignore[import-not-found]

    held: threading.Event = module.held
    held.set()
    assert ["timeout" in str(group.rollouts[0].failure) for group in groups] == [True] * 4
    assert (await played(WON, "TicTacToe-v0"))[0].reward == 1.0

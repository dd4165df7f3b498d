"""Games of TextArena: alone, against a fixed opponent, or the policy against itself.

    rollout run textarena:GuessTheNumber-v0
    rollout run textarena:TicTacToe-v0                                  # both sides by the policy
    rollout run textarena:ConnectFour-v0 -a opponent=bots.py:first_move # bots.py: a function of what it sees

Each side is an agent of its own, "player 0", "player 1": with a conversation that holds what the game tells that side,
a branch of the rollout's tree, and a reward. What is asked of a side is what the game has told it since its last move,
its own moves left out. The rollout's own reward is player 0's, or that of the side that the policy has.

TextArena draws from Python's and numpy's one random state, so a game has them to itself for each move: one move at a
time in a process, in a thread. A move that hangs is left behind with its rollout.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np

from envs.adapters.aside import aside
from envs.adapters.common import function, nearest, one_line, package, seeds
from envs.adapters.settings import checked
from rollout.agent import Agent, Model, Outcome, Task
from rollout.chat.messages import user
from rollout.errors import ConfigError
from rollout.process.threads import Threads

#: Numbers of players in the order in which they are tried: a few games for two take one as well.
_PLAYERS = (2, 1)

#: Calls of fixed opponents at once.
_OPPONENTS = 32

#: What a side is told that the game tells nothing.
_GO_ON = "It is your turn."


class Turn(msgspec.Struct, frozen=True):
    """Whose turn it is, and what the game has told that side since its last one."""

    player: int
    told: str
    done: bool = False


class Game:
    """One game, with random states of its own. Its methods block."""

    def __init__(self, id: str, settings: Mapping[str, Any], players: int, seed: int) -> None:
        """Raises ConfigError where the game cannot be loaded, or not for so many players."""
        self.id, self.seed = id, seed
        self._states: tuple[Any, Any] = (random.Random(seed).getstate(), np.random.RandomState(seed).get_state())
        self._outer: Any = None
        """The game in its wrappers: they form what is answered."""
        self._inner: Any = None
        self.players = 0
        settings = self._checked(settings)
        errors = []
        for count in (players,) if players else _PLAYERS:
            try:
                self._with_random(functools.partial(self._begin, settings, count))
            except Exception as error:  # the package checks by assertions, and its games by what they like
                errors.append(error)
            else:
                self.players = count
                return
        raise ConfigError(_why(id, errors))

    def _checked(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings, as the game wants them. Raises ConfigError, also where its file cannot be imported."""
        arena = package("textarena", "textarena", "textarena")
        module, _, name = arena.envs.registration.ENV_REGISTRY[self.id].entry_point.partition(":")
        try:
            with aside("textarena"):
                made_by = getattr(importlib.import_module(module), name)
        except Exception as error:
            raise ConfigError(_why(self.id, [error])) from error
        return checked(f"textarena:{self.id}", settings, made_by)

    def _begin(self, settings: Mapping[str, Any], count: int) -> None:
        arena = package("textarena", "textarena", "textarena")
        self._outer = self._inner = arena.make(self.id, **settings)
        while isinstance(self._inner, arena.Wrapper):
            self._inner = self._inner.env
        self._outer.reset(num_players=count, seed=self.seed)

    def _with_random(self, call: Callable[[], Any]) -> Any:
        """Calls the package with this game's random states in the place of the process's."""
        before = random.getstate(), np.random.get_state()
        random.setstate(self._states[0])
        np.random.set_state(self._states[1])
        try:
            with aside("textarena"):
                return call()
        finally:
            self._states = random.getstate(), np.random.get_state()
            random.setstate(before[0])
            np.random.set_state(before[1])

    def turn(self, done: bool = False) -> Turn:
        """Whose turn it is. Asked once after each move: what was told is not told again."""
        if done:
            return Turn(-1, "", done=True)
        player, observations = self._with_random(self._inner.get_observation)
        names = self._inner.state.role_mapping
        told = [
            f"[{names.get(sender, 'GAME') if sender >= 0 else 'GAME'}] {text}"
            for sender, text, _ in observations
            if sender != player
        ]
        return Turn(player, "\n".join(told) or _GO_ON)

    def move(self, text: str) -> Turn:
        """Makes the move of whoever's turn it is."""
        done, _ = self._with_random(lambda: self._outer.step(action=text))
        return self.turn(done)

    def end(self) -> tuple[dict[int, float], dict[int, dict[str, Any]]]:
        """Each side's reward, and what the package says of how it played."""
        rewards, info = self._with_random(self._outer.close)
        return {player: float(reward) for player, reward in (rewards or {}).items()}, info


class Arena(msgspec.Struct, frozen=True):
    """What all games of a process share. Calls that hang keep neither others nor the process from going on."""

    games: Threads
    """One thread: see above. One that hangs gives its place to another."""
    opponents: Threads


class TextArena(Agent):
    """Play a game of TextArena, each side an agent with its own reward: alone, against itself, or a fixed opponent."""

    @classmethod
    @asynccontextmanager
    async def setup(cls) -> AsyncIterator[Arena]:
        """The package, which takes seconds, is imported before the first deadline runs."""
        arena = Arena(games=Threads(1), opponents=Threads(_OPPONENTS))
        try:
            await arena.games.run(package, "textarena", "textarena", "textarena")
            yield arena
        finally:
            arena.games.close()
            arena.opponents.close()

    def __init__(self, id: str, opponent: str = "self", side: int = -1, players: int = 0, **settings: Any) -> None:
        """The arguments of `-a`.

        `id` is a game of TextArena. `opponent` has the other sides of a game for several: `self` is the policy, and
        `file.py:name` or `module:name` a function of all that its side was told, or a class whose objects are such, as
        TextArena's own agents are; it may be asynchronous. `side` is the policy's against such an opponent; without it
        the sides are taken in turn, task by task. `players` is their number, where the game leaves it open. Any other
        setting is the game's own. Raises ConfigError.
        """
        arena = package("textarena", "textarena", "textarena")
        known = arena.envs.registration.ENV_REGISTRY
        if id not in known:
            raise ConfigError(f"textarena has no game {id!r}{nearest(id, known)}; it has {len(known)}")
        if side < -1 or players < 0:
            raise ConfigError(f"textarena: side={side} and players={players} cannot be below 0")
        self.id, self.side, self.players, self.settings = id, side, players, settings
        self._opponent = function("opponent", opponent, "seen") if opponent != "self" else None
        self.notes: dict[str, str] = {}

    def tasks(self, n: int, seed: int) -> Iterable[Task]:
        """`n` seeds. One game is begun, so that what cannot be loaded is told before anything is played."""
        players = Game(self.id, self.settings, self.players, seed).players
        if self.side >= players:
            raise ConfigError(f"textarena:{self.id} has {players} players: side={self.side} is none of theirs")
        given = ({"seed": each} for each in seeds(n, seed))
        if self._opponent is None or players == 1:
            return given
        return ({**task, "side": at % players if self.side < 0 else self.side} for at, task in enumerate(given))

    def preflight(self, task: Task) -> None:
        """The task's game is begun, so that what cannot be loaded is told before anything is played."""
        Game(self.id, self.settings, self.players, _seed_of(task))

    async def run(self, task: Task, model: Model) -> Outcome:
        """Plays one game to its end."""
        seed = _seed_of(task)
        arena: Arena = self.shared
        game = await arena.games.run(Game, self.id, self.settings, self.players, seed)
        side = task.get("side", max(self.side, 0))
        ours = [side] if self._opponent is not None and game.players > 1 else range(game.players)
        sides = {
            player: _Policy(model.agent(name_of(player))) if player in ours else _Fixed(self._opponent, arena)
            for player in range(game.players)
        }
        turn = await arena.games.run(game.turn)
        while not turn.done:
            text = await sides[turn.player].answer(turn.told)
            turn = await arena.games.run(game.move, text)
        rewards, info = await arena.games.run(game.end)
        self.notes = {
            f"{name_of(player)} reason": str(said["reason"]) for player, said in info.items() if said.get("reason")
        }
        moves, invalid = (
            sum(float(info.get(at, {}).get(key, 0)) for at in ours) for key in ("turn_count", "invalid_move")
        )
        return Outcome(
            reward=rewards.get(ours[0], 0.0),
            rewards={name_of(player): rewards.get(player, 0.0) for player in ours},
            metrics={"moves": moves, "invalid": invalid},
        )


class _Policy:
    """A side that the model plays."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._messages: list[Any] = []

    async def answer(self, told: str) -> str:
        self._messages.append(user(told))
        answer = await self._model.chat(self._messages)
        self._messages.append(answer.message)
        return answer.text


class _Fixed:
    """A side that the user's function plays."""

    def __init__(self, opponent: Any, arena: Arena) -> None:
        self._threads = arena.opponents
        self._opponent = opponent() if isinstance(opponent, type) else opponent
        self._told: list[str] = []

    async def answer(self, told: str) -> str:
        self._told.append(told)
        seen = "\n".join(self._told)
        given = await self._threads.run(self._opponent, seen)
        answer = await given if inspect.isawaitable(given) else given
        if not isinstance(answer, str):
            raise TypeError(f"the opponent gave {type(answer).__name__}, not a move's text")
        self._told.append(f"[you] {answer}")
        return answer


def _seed_of(task: Task) -> int:
    if not isinstance(seed := task.get("seed"), int):
        raise ConfigError("a textarena task needs a whole number as its seed")
    return seed


def name_of(player: int) -> str:
    """The agent that plays this side, as the record and its reward have it."""
    return f"player {player}"


def _why(id: str, errors: list[Exception]) -> str:
    """The one error that says most: that of another number of players says only that."""
    telling = [error for error in errors if not isinstance(error, AssertionError)] or errors
    said = one_line(telling[0])
    if "nltk" in said.lower():
        return f"textarena:{id} needs data of nltk that is not here: run python -m nltk.downloader words with a network"
    if isinstance(telling[0], SyntaxError) and sys.version_info < (3, 12):
        return f"textarena:{id} needs Python 3.12 or newer, in which its file is written: {said:.300}"
    return f"textarena:{id} cannot be played here: {said:.300}"

"""Environments of Gymnasium: its toy_text ones by their drawing, any other through two functions of the user's.

    rollout run gymnasium:FrozenLake-v1 -a is_slippery=false
    rollout run gymnasium:CartPole-v1 -a describe=cart.py:describe -a act=cart.py:act

    def describe(env, observation, info):     # what the model is told: text
        return f"The pole leans by {observation[2]:.2f}. left or right?"

    def act(env, text):                       # what it does; ValueError says what is wrong with the answer
        return int("right" in text)

A rollout is an episode from the task's seed, an answer is a step, and rewards are the environment's own. In a drawing
`@` is where the player is: the package shows it by a colour.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
import msgspec

from envs.adapters.aside import aside
from envs.adapters.common import function, nearest, package, seeds
from envs.adapters.settings import checked, refusal
from rollout.chat.messages import Message, user
from rollout.env import Env, MessageLike, Step, Task
from rollout.errors import ConfigError

#: A character that is drawn in a colour.
_COLOURED = re.compile(r"\x1b\[([\d;]*)m(.?)\x1b\[0m")

#: Colours of the background, which are where the player is; those of letters are said in words.
_HERE = ("41", "42", "43")


class Toy(msgspec.Struct, frozen=True):
    """How one of the toy_text environments is told, and answered."""

    rules: str
    actions: tuple[str, ...]
    """Words, in the order of the action space."""


_TOYS = {
    "FrozenLakeEnv": Toy(
        "Walk over a frozen lake from S to the goal G. F is ice, and a step into a hole H ends it. @ is you.",
        ("left", "down", "right", "up"),
    ),
    "CliffWalkingEnv": Toy(
        "Walk to the target T. A step onto the cliff C sends you back to the start. x is you.",
        ("up", "right", "down", "left"),
    ),
    "TaxiEnv": Toy(
        "Drive a taxi to the passenger, pick them up, bring them to their destination, and drop them off. R, G, Y and "
        "B are places, | and - are walls, : can be passed. @ is the taxi.",
        ("south", "north", "east", "west", "pickup", "dropoff"),
    ),
    "BlackjackEnv": Toy(
        "Play Blackjack against the dealer: come nearer to 21 than the dealer, and not above it.", ("stick", "hit")
    ),
}


class Gymnasium(Env):
    """Play an episode of a Gymnasium environment, an action an answer; rewards are its own."""

    @classmethod
    @asynccontextmanager
    async def setup(cls) -> AsyncIterator[None]:
        """The package is imported before the first deadline runs."""
        await anyio.to_thread.run_sync(package, "gymnasium", "gymnasium", "gymnasium[toy-text]")
        yield

    def __init__(self, id: str, describe: str = "", act: str = "", invalid: int = 3, **settings: Any) -> None:
        """The arguments of `-a`.

        `id` is a registered environment's. `describe` and `act` are functions, `file.py:name` or `module:name`; those
        of toy_text need none. So many answers in a row without an action (`invalid`) end the episode. Any other setting
        is the environment's own, as `gymnasium.make` takes it. Raises ConfigError.
        """
        self._gym = package("gymnasium", "gymnasium", "gymnasium[toy-text]")
        self.id, self.settings, self.invalid = id, settings, invalid
        if invalid < 1:
            raise ConfigError(f"gymnasium: invalid={invalid} must be 1 or more")
        spec = self._spec()
        kind = str(spec.entry_point).rpartition(":")[2]
        self._toy = _TOYS.get(kind) if "toy_text" in str(spec.entry_point) else None
        if self._toy is None and not (describe and act):
            raise ConfigError(
                f"gymnasium:{id} is none of toy_text: say how it is told and answered by two functions, "
                "-a describe=file.py:name (of environment, observation, info) and -a act=file.py:name (of environment, "
                "text)"
            )
        self._describe: Callable[..., Any] = self._drawn
        if describe:
            self._describe = function("describe", describe, "env", "observation", "info")
        self._act: Callable[..., Any] = function("act", act, "env", "text") if act else self._action
        self._ansi = self._toy is not None and kind != "BlackjackEnv"
        self._env: Any = None
        self._wrong = 0
        self._metrics = {"steps": 0.0, "invalid": 0.0, "truncated": 0.0}

    def _spec(self) -> Any:
        try:
            with aside("gymnasium", prints=False):
                return self._gym.spec(self.id)
        except Exception as error:  # unknown, of another version, or of a module that cannot be imported
            said = " ".join(str(error).split())
            raise ConfigError(
                f"gymnasium has no environment {self.id!r}: {said}{nearest(self.id, self._gym.registry)}"
            ) from error

    def tasks(self, n: int, seed: int) -> Iterable[Task]:
        """`n` seeds. One environment is made, so that a wrong setting is told before anything is played."""
        self._made().close()
        return ({"seed": each} for each in seeds(n, seed))

    def preflight(self, task: Task) -> None:
        """An episode is begun: it shows whether a map, or the user's function, is any good."""
        self.reset(task)

    def _made(self) -> Any:
        spec = f"gymnasium:{self.id}"
        try:
            maker = self._gym.envs.registration.load_env_creator(self._spec().entry_point)
            ours = {"render_mode": "ansi"} if self._ansi else {}
            settings = checked(spec, self.settings, self._gym.make, maker, but=("id", *ours))
            with aside("gymnasium", prints=False):  # what a user's own environment prints is the user's
                return self._gym.make(self.id, **ours, **settings)
        except ConfigError:
            raise
        except Exception as error:
            raise refusal(spec, self.settings, error) from error

    def reset(self, task: Task) -> Sequence[MessageLike]:
        """The first observation, after what the game is."""
        if not isinstance(seed := task.get("seed"), int):
            raise ConfigError("a gymnasium task needs a whole number as its seed")
        self._env = self._made()
        observation, info = self._env.reset(seed=seed)
        told = self._told(observation, info)
        return [user(f"{self._rules()}\n\n{told}" if self._toy is not None else told)]

    def step(self, message: Message) -> Step:
        """Does what the answer says; an answer without an action is told so, and changes nothing."""
        try:
            action = self._act(self._env, message.text)
        except ValueError as error:
            return self._not_understood(str(error))
        self._wrong = 0
        observation, reward, terminated, truncated, info = self._env.step(action)
        self._metrics["steps"] += 1
        self._metrics["truncated"] = float(truncated)
        done = bool(terminated or truncated)
        told = [] if done else [user(self._told(observation, info))]
        return Step(messages=told, done=done, reward=float(reward), metrics=dict(self._metrics))

    def _not_understood(self, why: str) -> Step:
        self._wrong += 1
        self._metrics["invalid"] += 1
        done = self._wrong >= self.invalid
        return Step(messages=[] if done else [user(why)], done=done, metrics=dict(self._metrics))

    def close(self) -> None:
        """Closes the environment."""
        if self._env is not None:
            self._env.close()

    def _told(self, observation: Any, info: Any) -> str:
        told = self._describe(self._env, observation, info)
        if not isinstance(told, str):
            raise TypeError(f"describe gave {type(told).__name__}, not the text that the model is told")
        return told

    def _rules(self) -> str:
        assert self._toy is not None
        return f"{self._toy.rules} Each answer ends with one action: {', '.join(self._toy.actions)}."

    def _drawn(self, env: Any, observation: Any, info: Any) -> str:
        if not self._ansi:
            hand, dealer, ace = observation
            return (
                f"Your hand is worth {hand}{', with an ace that counts 11' if ace else ''}. The dealer shows {dealer}."
            )
        drawing = "\n".join(line.rstrip() for line in drawn(env.render()).strip("\n").splitlines())
        if (decode := getattr(env.unwrapped, "decode", None)) is None:
            return drawing
        row, column, passenger, destination = decode(int(observation))
        where = "is in the taxi" if passenger == 4 else f"waits at {'RGYB'[passenger]}"
        return (
            f"{drawing}\nThe taxi is in row {row}, column {column}. The passenger {where}; their destination is "
            f"{'RGYB'[destination]}."
        )

    def _action(self, env: Any, text: str) -> int:
        """The last of the actions that the text names. Raises ValueError."""
        assert self._toy is not None
        actions = self._toy.actions
        named = re.findall(rf"\b({'|'.join(actions)})\b", text.lower())
        if not named:
            raise ValueError(f"Please answer with one of: {', '.join(actions)}.")
        return actions.index(named[-1])


def drawn(rendering: str) -> str:
    """A drawing without colours: `@` where a background is coloured, the letter itself elsewhere."""
    while (plain := _COLOURED.sub(lambda found: "@" if found[1] in _HERE else found[2], rendering)) != rendering:
        rendering = plain  # a passenger's colour may lie around the taxi's
    return rendering

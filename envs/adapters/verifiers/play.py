"""An environment of verifiers as a process serves it, and its episodes as rollouts.

verifiers makes a client for each endpoint that it is told, and keeps it. A rollout's endpoint has a key of its own and
is gone with it, so a rollout's client is put where verifiers looks for one, and taken away after its episode.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import httpx
import msgspec
import verifiers.v1 as vf
from pydantic import ValidationError
from verifiers.v1.clients.base import DEFAULT_LIMITS
from verifiers.v1.clients.eval import EvalClient

from envs.adapters.verifiers.settings import said
from rollout.agent import Endpoint, Task
from rollout.errors import ConfigError

#: The run's limit that ends an episode as verifiers' own of that name does: it is scored as far as it came.
_MAX_TURNS = "max_turns"


class EpisodeFailed(Exception):
    """An episode that verifiers calls no valid result: nothing of it is a reward."""


class Played(msgspec.Struct, frozen=True):
    """How an episode went."""

    reward: float
    """The mean over its traces that are trained on."""
    rewards: Mapping[str, float]
    """By the agent's name, of each trace that has one."""
    metrics: Mapping[str, float]
    notes: dict[str, str]


class Served:
    """One environment, with what its rollouts share. Its methods are called on verifiers' own loop."""

    def __init__(self, env: Any, spec: str, start_s: float) -> None:
        self._env, self._spec, self._start_s = env, spec, start_s
        self._data = type(env.taskset).task_type().data_type()
        self._end = asyncio.Event()
        self._holder: asyncio.Task[None] | None = None
        self._http: Any = None

    def __repr__(self) -> str:
        return f"<Served {self._spec}, {'open' if self._http is not None else 'not open'}>"

    async def start(self) -> None:
        """Brings up what rollouts share. Raises ConfigError."""
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._holder = asyncio.create_task(self._hold(opened))
        try:
            async with asyncio.timeout(self._start_s):
                await opened
        except TimeoutError as error:
            await self._cancel()
            raise ConfigError(f"{self._spec} did not start within {self._start_s:g} s (start_s)") from error
        except asyncio.CancelledError:
            await self._cancel()
            raise

    async def _hold(self, opened: asyncio.Future[None]) -> None:
        """Enters and leaves it in one task, as what it holds wants."""
        try:
            async with (
                httpx.AsyncClient(timeout=httpx.Timeout(None, connect=30.0), limits=DEFAULT_LIMITS) as self._http,
                self._env.serving(),
            ):
                if not opened.done():
                    opened.set_result(None)
                await self._end.wait()
        except Exception as error:
            if opened.done():
                raise
            failed = ConfigError(f"{self._spec} cannot be served: {said(error)}")
            failed.__cause__ = error
            opened.set_exception(failed)
        finally:
            self._http = None

    async def _cancel(self) -> None:
        assert self._holder is not None
        self._holder.cancel()
        await asyncio.wait([self._holder])

    async def stop(self) -> None:
        """Takes it down. Raises what that raised."""
        self._end.set()
        if self._holder is not None:
            await self._holder

    def task(self, given: Task) -> Any:
        """A task of the taskset's own. Raises ConfigError."""
        data = given.get("data")
        if not isinstance(data, Mapping):
            raise ConfigError('a task of verifiers needs "data", a row of its taskset: {"data": {"prompt": "..."}}')
        try:
            row = self._data.model_validate({"idx": given.get("index"), **data})
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
            place = ".".join(map(str, found["loc"]))
            raise ConfigError(f"{self._spec} has no such task: data.{place}: {found['msg']}") from error
        kind = type(self._env.taskset).task_type()
        return kind(row, self._env.config.taskset.task)

    async def play(self, given: Task, endpoint: Endpoint, limit: Callable[[], str | None]) -> Played:
        """Plays an episode. `limit` says which of the run's limits the rollout has reached. Raises EpisodeFailed."""
        task = self.task(given)
        traces = _Traces(self._env)
        config = vf.EvalClientConfig(base_url=endpoint.openai_base_url, headers={"x-rollout-client": uuid.uuid4().hex})
        clients, key = self._env._interception.clients, config.model_dump_json()
        clients[key] = _Client(self._http, endpoint, traces, limit)
        try:
            context = vf.ModelContext(endpoint.model or "policy", config)
            episode = await self._env.run_episode(task, context, on_trace=traces.add)
        finally:
            del clients[key]
        if not self._env.complete(episode):
            errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
            raise EpisodeFailed(_why(errors[-1]) if errors else "the environment calls it no valid result")
        return traces.played(episode.traces)


class _Traces:
    """The traces of one episode, each an agent by its seat's name. A single seat's first has no name: it is the
    rollout's own."""

    def __init__(self, env: Any) -> None:
        self._unnamed = isinstance(env, vf.SingleAgentEnv)
        self._names: dict[str, str] = {}
        self._of: dict[str, Any] = {}
        self._seen: Counter[str] = Counter()
        self._asked: set[str] = set()
        """Those that asked the policy: a seat may have a model of its own (`judge.client.base_url`)."""

    def add(self, trace: Any) -> None:
        """One that begins."""
        seat = trace.agent.name
        self._seen[seat] += 1
        number = self._seen[seat]
        first = "" if self._unnamed and len(self._of) == 0 else seat
        self._names[trace.id] = first if number == 1 else f"{seat} {number}"
        self._of[trace.id] = trace

    def asks(self, id: str) -> tuple[str, Any]:
        """A trace that asks the policy, with its agent's name."""
        self._asked.add(id)
        return self._names[id], self._of[id]

    def played(self, traces: list[Any]) -> Played:
        """What an episode comes to."""
        ours = [trace for trace in traces if trace.agent.trainable and trace.id in self._asked]
        numbers: dict[str, list[float]] = {}
        for trace in ours:
            for name, value in _numbers(trace).items():
                numbers.setdefault(name, []).append(value)
        named = {self._names[trace.id]: trace.reward for trace in ours if self._names.get(trace.id)}
        stops = {f"{self._names[trace.id]} stop".strip(): str(trace.stop_condition) for trace in traces}
        return Played(
            reward=fmean(trace.reward for trace in ours) if ours else 0.0,
            rewards=named,
            metrics={name: fmean(values) for name, values in numbers.items()},
            notes=stops,
        )


class _Client(EvalClient):  # type: ignore[misc]  # the package is none of this environment's
    """What a rollout's harnesses ask, sent on to its endpoint: with its key, and with who asks."""

    def __init__(
        self, http: Any, endpoint: Endpoint, traces: _Traces, limit: Callable[[], str | None]
    ) -> None:  # its base's makes connections of its own
        self.base_url, self.api_key, self.client = endpoint.openai_base_url, endpoint.api_key, http
        self.headers: dict[str, str] = {}
        self._traces, self._limit = traces, limit

    async def get_response(
        self, dialect: Any, body: Any, sampling: Any, session_id: Any = None, turn: Any = None, headers: Any = None
    ) -> Any:
        """One turn, whole."""
        try:
            return await super().get_response(dialect, body, sampling, session_id, turn, self._who(session_id, headers))
        except vf.ProviderError:
            self._stop(session_id)
            raise

    async def relay(self, dialect: Any, body: Any, session_id: Any = None, headers: Any = None) -> Any:
        """One turn, streamed."""
        try:
            return await super().relay(dialect, body, session_id, self._who(session_id, headers))
        except vf.ProviderError:
            self._stop(session_id)
            raise

    def _who(self, id: Any, headers: Any) -> dict[str, str]:
        """The request's headers, with those of our own. A program's sub-agents keep the names that it gives them."""
        name, trace = self._traces.asks(id)
        found = {key.lower(): value for key, value in (headers or {}).items()}
        if name and "x-claude-code-agent-id" not in found:
            found["x-rollout-agent"] = name
        if not trace.agent.trainable:
            found["x-rollout-train"] = "false"
        return found

    def _stop(self, id: Any) -> None:
        if self._limit() == _MAX_TURNS:
            self._traces.asks(id)[1].stop(_MAX_TURNS)


def _numbers(trace: Any) -> dict[str, float]:
    """A trace's metrics, and what each of its reward functions gave."""
    rewards = {f"reward_{name}": reward.score for name, reward in trace.rewards.items() if reward is not None}
    return {**{name: value for name, value in trace.metrics.items() if value is not None}, **rewards}


def _why(error: Any) -> str:
    lines = str(error.message).strip().splitlines() or [""]
    return f"{error.type}: {lines[-1] if error.type == 'HarnessError' else lines[0]:.300}"

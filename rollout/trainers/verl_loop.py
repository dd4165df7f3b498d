"""verl's agent loop that plays one of our environments or agents: the one file here that imports its trainer.

verl finds it by its name, in the file that `actor_rollout_ref.rollout.agent.agent_loop_config_path` names:

    - name: guess
      _target_: rollout.trainers.verl_loop.RolloutAgentLoop
      env: guess_number
      env_args: {guesses: 7}
      settings: {max_tokens: 64, rollout_retries: 1}

and a row of the data set by `agent_name: guess`. The row's `extra_info.task` is the environment's task; a subclass may
make it otherwise (`RolloutAgentLoop.task`). `rollout` is registered with verl's registry too: there the row's
`extra_info` has `env` and `env_args`. What the model is shown is the environment's own: the row's prompt goes with the
answer, as verl wants it, and no further.

verl makes one object for each rollout, so that engines are shared by those of one worker: see `shared.py`.

Failures. Where verl's servers fail, or we do, the rollout raises, as verl's own loops do, and verl ends the step (its
v1 trainer gives up the prompt): training on nothing would be worse. Where the environment fails, takes too long, or
leaves nothing that was sampled (a first prompt that does not fit), verl gets an answer that trains on nothing, with
reward 0 and `extra_fields["rollout_failure"]`; with `branches: all`, no answer, which verl's v1 trainer leaves out.
`settings` with `rollout_retries` has it played again first, and with `on_failure: raise` it raises, too.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio.to_thread
import msgspec
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register

from rollout.config import EngineConfig
from rollout.engine import Engine
from rollout.errors import ConfigError, RolloutError
from rollout.participant import Participant, Task
from rollout.records import FailureKind, Rollout
from rollout.registry import env_factory
from rollout.trainers.rows import Row
from rollout.trainers.shared import SharedEngines
from rollout.trainers.verl import Branches, LengthLimits, VerlTransport, answered

#: What is not the environment's doing: the step ends.
_NOT_THEIRS = frozenset({FailureKind.TRANSPORT, FailureKind.INTERNAL, FailureKind.PROCESS, FailureKind.INVARIANT})

#: What a model's folder says of it beside its tokenizer.
_MODEL_FILES = ("config.json", "generation_config.json")

ENGINES = SharedEngines[Engine]()
"""The engines of this process. `await ENGINES.aclose()` closes those of the running event loop."""


@register("rollout")
class RolloutAgentLoop(AgentLoopBase):  # type: ignore[misc]  # verl ships no types
    """Plays one rollout of an environment or agent, on the servers that verl trains."""

    def __init__(
        self,
        *args: Any,
        env: str | None = None,
        env_args: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        branches: Branches = "last",
        on_failure: Literal["mask", "raise"] = "mask",
        **kwargs: Any,
    ) -> None:
        """`env` and `env_args` are what `rollout run ENV -a KEY=VALUE` takes, `settings` those of `EngineConfig`."""
        super().__init__(*args, **kwargs)
        self._env, self._env_args = env, _plain(env_args)
        self._settings = _plain(settings)
        self._branches, self._on_failure = branches, on_failure
        rollout = self.rollout_config
        self._limits = LengthLimits(
            prompt=rollout.prompt_length, response=rollout.response_length, context=rollout.get("max_model_len")
        )

    def task(self, row: Mapping[str, Any]) -> Task:
        """A row of verl's data set -> the environment's task. Raises ConfigError."""
        found = (row.get("extra_info") or {}).get("task")
        if not isinstance(found, Mapping):
            raise ConfigError(
                "a row's extra_info has no `task`, the environment's task as an object: put it there, or make it in a "
                "subclass of RolloutAgentLoop (`task`)"
            )
        return found

    def played(self, rollout: Rollout) -> None:
        """Called with each rollout as it ended, before verl has it: for a subclass that keeps or measures them."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput | list[AgentLoopOutput]:
        """See verl's `AgentLoopBase`. Raises ConfigError, and RolloutError as the file's docstring says."""
        task, make_env = self.task(kwargs), self._environment(kwargs)
        sampling = {name: value for name, value in sampling_params.items() if name != "logprobs"}
        config = self._engine_config(sampling)
        key = (id(self.server_manager), msgspec.json.encode([_hashable(config), self._template()]))
        async with ENGINES.use(key, partial(self._engine, config)) as engine:
            submission = await engine.submit(task, env=make_env)
            (rollout,) = (await submission.result()).rollouts
        self.played(rollout)
        self._refuse(rollout)
        with_logprobs = bool(sampling_params.get("logprobs", True))
        rows = [] if rollout.failure is not None else answered(rollout, self._limits, self._branches)
        outputs = [self._output(row, rollout, with_logprobs=with_logprobs) for row in rows]
        if self._branches == "all":
            return outputs
        return outputs[0] if outputs else self._nothing(rollout, with_logprobs=with_logprobs)

    def _environment(self, row: Mapping[str, Any]) -> Callable[[], Participant]:
        """What plays the row. Raises ConfigError."""
        extra = row.get("extra_info") or {}
        name = self._env or extra.get("env")
        if name is None:
            raise ConfigError("no environment: name one by `env` in the agent loop's config, or in a row's extra_info")
        return env_factory(name, self._env_args or _plain(extra.get("env_args")))

    def _engine_config(self, sampling: Mapping[str, Any]) -> EngineConfig:
        given = {"concurrency": 4096, "template_args": _plain(self.apply_chat_template_kwargs), **self._settings}
        try:
            return EngineConfig(**{**given, "sampling": {**given.get("sampling", {}), **sampling}})
        except TypeError as error:
            raise ConfigError(f"settings of the agent loop: {error}") from error

    def _template(self) -> str | None:
        """The chat template that verl was told to use in place of the model's own."""
        found = self.config.actor_rollout_ref.model.get("custom_chat_template")
        return None if found is None else str(found)

    @asynccontextmanager
    async def _engine(self, config: EngineConfig) -> AsyncIterator[Engine]:
        transport = VerlTransport(
            self.server_manager,
            self.tokenizer,
            self._limits,
            model=str(self.config.actor_rollout_ref.model.path),
            logprobs_mode=self.rollout_config.get("logprobs_mode"),
        )
        with tempfile.TemporaryDirectory() as folder:
            if config.tokenizer is None:
                name = await anyio.to_thread.run_sync(self._tokenizer_folder, Path(folder))
                config = msgspec.structs.replace(config, tokenizer=name)
            async with Engine(config, _nobody, transport=transport) as engine:
                yield engine

    def _tokenizer_folder(self, spare: Path) -> str:
        """Where the tokenizer that verl uses lies; it is written out where verl has changed its chat template."""
        home = str(self.tokenizer.name_or_path)
        if self._template() is None and home:
            return home
        self.tokenizer.save_pretrained(spare)
        for file in _MODEL_FILES:
            if (Path(home) / file).is_file():
                shutil.copy(Path(home) / file, spare / file)
        return str(spare)

    def _refuse(self, rollout: Rollout) -> None:
        """Raises RolloutError for a failure that ends verl's step."""
        failure = rollout.failure
        if failure is not None and (self._on_failure == "raise" or failure.kind in _NOT_THEIRS):
            raise RolloutError(f"rollout {rollout.id} failed ({failure.kind}): {failure.message}")

    def _output(self, row: Row, rollout: Rollout, *, with_logprobs: bool) -> AgentLoopOutput:
        return AgentLoopOutput(
            prompt_ids=row.prompt_ids,
            response_ids=row.response_ids,
            response_mask=row.mask,
            response_logprobs=row.logprobs if with_logprobs else None,
            # Nobody gave one: verl's own reward function is asked.
            reward_score=row.sample.reward if row.sample.reward_known else None,
            num_turns=len(rollout.messages),
            metrics=AgentLoopMetrics(
                generate_sequences=sum(turn.request_s for turn in rollout.turns), tool_calls=rollout.timing.env_s
            ),
            extra_fields={**_said_of(rollout), **_steps(row)},
        )

    def _nothing(self, rollout: Rollout, *, with_logprobs: bool) -> AgentLoopOutput:
        """For a rollout that leaves nothing to train on: a padding token as prompt and as response, masked."""
        pad = next((id_ for id_ in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if id_ is not None), 0)
        why = rollout.failure.message if rollout.failure is not None else "nothing of it could be trained on"
        said = _said_of(rollout)
        return AgentLoopOutput(
            prompt_ids=[pad],
            response_ids=[pad],
            response_mask=[0],
            response_logprobs=[0.0] if with_logprobs else None,
            reward_score=0.0,
            num_turns=len(rollout.messages),
            metrics=AgentLoopMetrics(tool_calls=rollout.timing.env_s),
            extra_fields={**said, "rollout_failure": said["rollout_failure"] or why},
        )


def _said_of(rollout: Rollout) -> dict[str, Any]:
    """The same keys for every rollout: verl makes columns of them."""
    return {
        "turn_scores": [turn.reward for turn in rollout.turns],
        "tool_rewards": [],
        "min_global_steps": None,
        "max_global_steps": None,
        "reward_extra_info": {},
        "rollout_id": rollout.id,
        "rollout_stop": rollout.stop.value if rollout.stop is not None else None,
        "rollout_failure": f"{rollout.failure.kind}: {rollout.failure.message}" if rollout.failure else None,
        "rollout_metrics": dict(rollout.metrics),
    }


def _steps(row: Row) -> dict[str, int]:
    """The first and the last training step whose weights sampled what it trains on."""
    steps = [int(version) for version in row.versions if version.isdigit()]
    return {"min_global_steps": min(steps), "max_global_steps": max(steps)} if steps else {}


def _plain(given: Any) -> dict[str, Any]:
    """A part of verl's config as plain Python."""
    found = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    return dict(found or {})


def _hashable(config: EngineConfig) -> dict[str, Any]:
    """The settings as JSON has them; a launcher that is a function counts as itself."""
    found = msgspec.structs.asdict(config)
    return {**found, "launch": str(found["launch"])}


def _nobody() -> Participant:
    """Each rollout names its own environment."""
    raise ConfigError("this engine plays what is submitted to it")

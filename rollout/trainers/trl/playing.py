"""`rollout_func` of TRL's `GRPOTrainer`: the prompts of a step are played by the engine, and become rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from rollout.checks import choice
from rollout.env import Task
from rollout.errors import ConfigError, TooManyFailures
from rollout.log import get_logger
from rollout.thread import EngineThread, ThreadSubmission
from rollout.trainers.trl.engines import check_engine, check_sampling
from rollout.trainers.trl.folders import Folders, SavePolicy, Weights, save_policy
from rollout.trainers.trl.prompts import Sampler, Wanted, task_of, wanted
from rollout.trainers.trl.rows import Branches, Row, empty_row, fields_of, row_of
from rollout.transport import InFlight

_log = get_logger(__name__)

#: A rollout that the engine never began, such as those of a submission that was cancelled.
NOT_PLAYED = "not_played"


def rollout_func(
    engine: EngineThread,
    *,
    task: Callable[[Any], Task] = task_of,
    branches: Branches = "longest",
    push: bool = True,
    folder: str | Path | None = None,
    save: SavePolicy = save_policy,
    in_flight: InFlight = "abort",
    max_failed: float | None = 1.0,
) -> RolloutFunc:
    """What `GRPOTrainer(rollout_func=...)` takes: one row a rollout, played by `engine`, which must be open meanwhile.

    `task` makes a task of a prompt of the data set; by default a prompt is one, as `trl.prompts` writes it.
    `branches` says what becomes of a rollout that has several branches, of which TRL takes one: the one with the most
    sampled tokens (`longest`), the last that was begun (`last`), none (`mask`: as if the rollout had failed), or an
    error (`refuse`). How many there were, and how many tokens were left out, is logged with every step.
    `push` has the servers load the policy before each step whose weights they do not have: `save` writes it into
    a folder in `folder` (by default `policy` in the trainer's output_dir), which the servers must be able to read,
    `in_flight` says what becomes of requests of others that run meanwhile.
    A step of which a share of `max_failed` or more failed raises TooManyFailures, by default one that failed whole:
    there is nothing to learn from, and an optimizer with momentum would move all the same. None goes on through all.
    """
    check_engine("rollout_func", engine)
    choice("branches", branches, get_args(Branches))
    choice("in_flight", in_flight, get_args(InFlight))
    if max_failed is not None and not 0 < max_failed <= 1:
        raise ConfigError(f"max_failed is a share above 0 and up to 1, or None, not {max_failed!r}")
    return RolloutFunc(engine, task, branches, Pushing(engine, folder, save, in_flight) if push else None, max_failed)


class RolloutFunc:
    """See `rollout_func`."""

    def __init__(
        self,
        engine: EngineThread,
        task: Callable[[Any], Task],
        branches: Branches,
        pushing: Pushing | None,
        max_failed: float | None,
    ) -> None:
        self._engine = engine
        self._task = task
        self._branches = branches
        self._pushing = pushing
        self._max_failed = max_failed
        self._sampler = Sampler()

    def __repr__(self) -> str:
        return f"<RolloutFunc {self._engine}>"

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, list[Any]]:
        """One step's rows, in the order of its prompts. Raises what ends the engine, ConfigError, TooManyFailures."""
        check_sampling(trainer.args, self._engine)
        if self._pushing is not None:
            self._pushing.bring_level(trainer)
        training = trainer.model.training
        generations = trainer.num_generations if training else trainer.num_generations_eval
        rows_of_batch = _rows_of_a_batch(trainer.args, training=training)
        once = self._sampler.once(prompts, generations, rows_of_batch, training=training)
        jobs = wanted(prompts, generations, once=once)
        rows = self._play(jobs, filler=trainer.eos_token_ids[0], temperature=trainer.args.temperature)
        self._report(rows)
        return fields_of(rows)

    def _play(self, jobs: Sequence[Wanted], *, filler: int, temperature: float) -> list[Row]:
        tasks = [self._task(job.prompt) for job in jobs]
        submissions: list[ThreadSubmission] = []
        rows: list[Row] = []
        try:
            for task, job in zip(tasks, jobs, strict=True):
                submissions.append(self._engine.submit(task, rollouts=job.rollouts))
            for submission, job in zip(submissions, jobs, strict=True):
                played = {rollout.member: rollout for rollout in submission.result().rollouts}
                rows += [
                    row_of(played[member], self._branches, filler=filler, temperature=temperature)
                    if member in played
                    else empty_row(filler, NOT_PLAYED, "it was never begun")
                    for member in range(job.rollouts)
                ]
        except BaseException:
            for submission in submissions:
                submission.cancel()  # of what is over, nothing
            raise
        return rows

    def _report(self, rows: Sequence[Row]) -> None:
        """Says what failed and what was left out. Raises TooManyFailures."""
        failed = [row for row in rows if row.failure]
        kinds = dict(Counter(row.failure for row in failed))
        if failed:
            _log.warning(
                "rollouts_without_row", failed=len(failed), rows=len(rows), kinds=kinds, last=failed[-1].message
            )
        if left_out := sum(row.left_out for row in rows):
            branched = sum(row.branches > 1 for row in rows)
            _log.warning(
                "branches_left_out", rollouts=branched, rows=len(rows), tokens=left_out, branches=self._branches
            )
        if rows and self._max_failed is not None and len(failed) >= self._max_failed * len(rows):
            raise TooManyFailures(
                f"{len(failed)} of {len(rows)} rollouts of a step failed ({_listed(kinds)}), the last: "
                f"{failed[-1].message}; mend that, or give rollout_func another max_failed"
            )


class Pushed(NamedTuple):
    """A policy that was pushed."""

    state: Any
    """The trainer's, which it makes anew when a training begins."""
    step: int
    version: str
    weights: Weights

    def is_of(self, trainer: Any) -> bool:
        """Whether the trainer's policy is still this one.

        Its step alone does not tell: a second training begins at 0 again, and the best model is loaded without a step.
        Its tensors alone do not, either: a fused optimizer's changes are not counted.
        """
        begun_since = trainer.state is not self.state and self.state.max_steps > 0  # 0: nothing was trained before
        return trainer.state.global_step == self.step and not begun_since and self.weights.are_still_in(trainer.model)


class Pushing:
    """Has the servers load the policy whenever it is another than they have: its version is the trainer's step."""

    def __init__(self, engine: EngineThread, folder: str | Path | None, save: SavePolicy, in_flight: InFlight) -> None:
        self._engine = engine
        self._folder = folder
        self._save = save
        self._in_flight = in_flight
        self._folders: Folders | None = None
        self._has: Pushed | None = None
        """What the servers have; None before the first, when they may have anybody's."""

    def __repr__(self) -> str:
        return f"<Pushing to {self._folders or self._folder}, at step {self._has.step if self._has else None}>"

    def bring_level(self, trainer: Any) -> None:
        """Pushes the policy, unless the servers have it. Raises TransportError where no server loads it."""
        accelerator = trainer.accelerator
        level = self._is_level(trainer)
        if accelerator.num_processes > 1:
            from accelerate.utils import gather_object  # here: whoever has several processes has it

            level = all(gather_object([level]))  # all push, or none: they wait for each other
        if level:
            self._has = self._has and self._has._replace(state=trainer.state)
            return
        version = self._next_version(trainer.state.global_step)
        if self._folders is None:
            self._folders = Folders(Path(self._folder or Path(trainer.args.output_dir) / "policy"))
        folders, main = self._folders, accelerator.is_main_process
        # Every process takes part in gathering the weights; one writes them.
        self._save(trainer, folders.begin(version) if main else folders.partial(version))
        if main:
            self._load(version, folders.finish(version))
            folders.loaded(version)
        accelerator.wait_for_everyone()
        if not main:
            # One process had the servers load it, which these are told; an embedded model is each process's own.
            self._load(version, None if self._engine.config.base_urls else folders.path(version))
        accelerator.wait_for_everyone()
        # What they are is looked at now: a `save` that merges an adapter, and takes it out again, has touched them.
        self._has = Pushed(trainer.state, trainer.state.global_step, str(version), Weights(trainer.model))

    def _is_level(self, trainer: Any) -> bool:
        has = self._has
        return has is not None and has.version == self._engine.weight_version and has.is_of(trainer)

    def _next_version(self, step: int) -> int:
        """The step, or the next number where the servers had that one: a version names one policy, for good."""
        named = self._engine.weight_version or ""
        return max(step, int(named) + 1) if named.isdecimal() else step

    def _load(self, version: int, path: Path | None) -> None:
        self._engine.update_weights(version, path, in_flight=self._in_flight)


def _rows_of_a_batch(args: Any, *, training: bool) -> int:
    """Rows of a whole batch of one process."""
    if training:
        return int(args.per_device_train_batch_size * args.steps_per_generation)
    return int(args.per_device_eval_batch_size)


def _listed(kinds: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))

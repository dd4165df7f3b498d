"""TRL's `AsyncGRPOTrainer` over the engine: what fills its queue, and what takes its weights.

    transfer = FolderTransfer(engine, "runs/policy", model=model_folder)
    worker = RolloutWorker(engine, tasks, rollouts_per_task=8)
    AsyncGRPOTrainer(model_folder, rollout_worker=worker, weight_transfer=transfer, ...)

The trainer streams its weights tensor by tensor, and our servers load a folder: `FolderTransfer` is the bridge. The
trainer takes several rows of one rollout, so every branch becomes a row here, and no sampled token is left out.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from rollout.checks import choice
from rollout.env import Task
from rollout.errors import ConfigError, EngineClosed
from rollout.log import get_logger
from rollout.records import Group, Rollout
from rollout.thread import EngineThread, ThreadStream
from rollout.tokens.samples import TrainingSample
from rollout.trainers.rows import logprobs_of, refuse_images, trained
from rollout.trainers.trl.engines import check_engine
from rollout.trainers.trl.folders import Folders, copy_beside, write_tensors
from rollout.transport import InFlight

_log = get_logger(__name__)

#: Versions whose number in the trainer is remembered: staler rollouts are the oldest of these.
_REMEMBERED = 1_000

#: Seconds between two looks at whether the worker is to stop, while the trainer's queue is full.
_POLL_S = 0.2


class RolloutWorker:
    """TRL's `RolloutWorkerProtocol`: plays tasks without end, and puts every branch into the trainer's queue.

    A failed rollout has no row: it is left out of its group, and counted in the trainer's metrics
    (`rollouts/failed_total`, `rollouts/failed_KIND_total`).
    """

    def __init__(
        self,
        engine: EngineThread,
        tasks: Iterable[Task],
        *,
        rollouts_per_task: int,
        queue_size: int = 1024,
        ahead: int | None = None,
        make_sample: Callable[..., Any] | None = None,
    ) -> None:
        """`queue_size` rows, and `ahead` groups before them (see `Engine.stream`), wait for the trainer at most: the
        more do, the staler are they when it takes them. `make_sample` takes the place of the release's RolloutSample.
        """
        check_engine("RolloutWorker", engine)
        if rollouts_per_task < 1 or queue_size < 1:
            raise ConfigError(f"rollouts_per_task and queue_size are 1 or more, not {rollouts_per_task}, {queue_size}")
        self.rollout_buffer: queue.Queue[Any] = queue.Queue(maxsize=queue_size)
        self.metrics_queue: queue.Queue[dict[str, float]] = queue.Queue()
        self._engine = engine
        self._tasks = tasks
        self._rollouts_per_task = rollouts_per_task
        self._ahead = ahead
        self._make_sample = make_sample
        self._numbers: OrderedDict[str, int] = OrderedDict()
        """The trainer's numbers of versions, by our names."""
        self._version = 0
        self._thread: threading.Thread | None = None
        self._stream: ThreadStream | None = None
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._progress = time.monotonic()
        """When a row was last put, or could not be for want of room."""
        self._failure = ""
        """The last failure of a rollout, in words."""

    def __repr__(self) -> str:
        return f"<RolloutWorker {self.rollout_buffer.qsize()} rows wait, version {self._version}>"

    def start(self) -> None:
        """Begins to play, in a thread. Once."""
        if self._thread is not None:
            raise RuntimeError("a RolloutWorker is started once: make another")
        if self._make_sample is None:
            from trl.experimental.async_grpo.async_rollout_worker import RolloutSample  # here: TRL is there only now

            self._make_sample = RolloutSample
        self._progress = time.monotonic()
        self._stream = self._engine.stream(self._tasks, rollouts_per_task=self._rollouts_per_task, ahead=self._ahead)
        self._thread = threading.Thread(target=self._run, args=(self._stream,), name="rollout-trl-worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends whatever the engine plays, and the thread."""
        self._stopping.set()
        if self._thread is None:
            return
        if self._engine.open:
            self._engine.cancel()
        self._thread.join()

    def update_model_version(self, model_version: int) -> None:
        """The trainer's number of the weights that the servers have now."""
        self._version = model_version
        if (name := self._engine.weight_version) is not None:
            self._numbers[name] = model_version
            while len(self._numbers) > _REMEMBERED:
                self._numbers.popitem(last=False)

    def check_health(self, stale_after_s: float) -> None:
        """Raises RuntimeError where nothing more comes: it ended, or no row came for that long."""
        if self._error is not None:
            raise RuntimeError(f"the rollout worker ended: {self._error}") from self._error
        if self._thread is not None and not self._thread.is_alive() and self.rollout_buffer.empty():
            raise RuntimeError("the rollout worker has played all of its tasks: give it tasks without end")
        age = time.monotonic() - self._progress
        if self._thread is not None and age > stale_after_s:
            failed = f", the last rollout failed: {self._failure}" if self._failure else ""
            raise RuntimeError(f"no row came for {age:.0f} s{failed}; {self._engine}")

    def _run(self, stream: ThreadStream) -> None:
        try:
            with stream:
                for number, group in enumerate(stream):
                    self._count(group)
                    if not all(self._put(sample) for sample in self._samples(group, number)):
                        return
        except EngineClosed as error:
            if not self._stopping.is_set():
                self._error = error
        except Exception as error:
            self._error = error
            _log.error("rollout_worker_ended", error=type(error).__name__, message=str(error))

    def _put(self, sample: Any) -> bool:
        """Waits for room. False where it is to stop meanwhile."""
        while not self._stopping.is_set():
            self._progress = time.monotonic()
            with contextlib.suppress(queue.Full):
                sample.enqueued_at = time.time()
                self.rollout_buffer.put(sample, timeout=_POLL_S)
                return True
        return False

    def _count(self, group: Group) -> None:
        failures = [rollout.failure for rollout in group.rollouts if rollout.failure is not None]
        failed = Counter(failure.kind.value for failure in failures)
        self._failure = failures[-1].message if failures else self._failure
        counts = {"rollouts/played_total": float(len(group.rollouts)), "rollouts/failed_total": float(failed.total())}
        counts["rollouts/unknown_reward_total"] = float(sum(not rollout.reward_known for rollout in group.finished))
        counts |= {f"rollouts/failed_{kind}_total": float(number) for kind, number in failed.items()}
        self.metrics_queue.put(counts)

    def _samples(self, group: Group, number: int) -> Iterator[Any]:
        """Every branch that trains, with its group's advantages."""
        import numpy as np

        assert self._make_sample is not None, "it was started"
        rollouts = {rollout.id: rollout for rollout in group.finished}
        deviation = _deviation(group.rewards)
        for sample in group.samples():
            mask = trained(sample)
            if not any(mask) or not sample.reward_known:  # nobody gave one: no advantage is known
                continue
            refuse_images(sample, "TRL's AsyncGRPOTrainer")
            rollout = rollouts[sample.rollout_id]
            prompt, completion = _messages(rollout)
            yield self._make_sample(
                prompt=prompt,
                completion=completion,
                input_ids=np.asarray(sample.token_ids, np.int64),
                completion_mask=np.asarray(mask, np.int64),
                old_log_probs=np.asarray(logprobs_of(sample), np.float32),
                advantage=sample.advantage or 0.0,
                model_version=self._number_of(sample),
                group_id=number,
                metrics={"reward": sample.reward, "reward_std": deviation, "rollouts/turns": float(len(rollout.turns))},
            )

    def _number_of(self, sample: TrainingSample) -> int:
        """The trainer's number of the oldest weights that sampled it: staleness is never understated."""
        named = {version for version, on in zip(sample.weight_versions, sample.loss_mask, strict=True) if on}
        # Of an update that the trainer has not numbered yet: it is as good as the one before.
        return min((self._numbers.get(version, self._version) for version in named if version), default=self._version)


class FolderTransfer:
    """TRL's `WeightTransferProtocol`: the tensors that it streams become a folder, which the engine's servers load."""

    def __init__(
        self, engine: EngineThread, folder: str | Path, *, model: str | Path, in_flight: InFlight = "keep"
    ) -> None:
        """`folder` is where every server can read it; `model` has the configuration that belongs to the weights.

        `in_flight` says what becomes of requests that run while weights are changed.
        """
        check_engine("FolderTransfer", engine)
        choice("in_flight", in_flight, get_args(InFlight))
        self._engine = engine
        self._folders = Folders(Path(folder))
        self._model = Path(model)
        self._in_flight = in_flight
        self.version = 0
        """Of the last weights that the servers were given."""

    def __repr__(self) -> str:
        return f"<FolderTransfer {self._folders}>"

    def init_weight_transfer(self) -> None:
        """Goes on from the version that the servers name. Raises ConfigError where `model` is no model's folder."""
        if not (self._model / "config.json").is_file():
            raise ConfigError(f"{self._model} has no config.json: name the folder of the model that is trained")
        named = self._engine.weight_version or ""
        self.version = int(named) if named.isdecimal() else 0

    def pause(self) -> None:
        """Nothing new is sent to the servers, from before the first tensor on."""
        self._engine.pause(self._in_flight)

    def send_weights(self, iterator: Iterator[tuple[str, Any]]) -> None:
        """Writes what comes, and has the servers load it. Raises TransportError where none does.

        The tensors are taken to their end whatever happens: other processes of the trainer take part in each.
        """
        version = self.version + 1
        try:
            folder = self._folders.begin(version)
            copy_beside(self._model, folder)
            write_tensors(folder, iterator)
        except BaseException:
            for _ in iterator:
                pass
            raise
        self._engine.update_weights(version, self._folders.finish(version), in_flight=self._in_flight)
        self._folders.loaded(version)
        self.version = version

    def resume(self) -> None:
        """The servers go on."""
        self._engine.resume()

    def destroy(self) -> None:
        """Nothing is held: the newest folder stays, for servers that come back."""


def _messages(rollout: Rollout) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The conversation up to the first answer, and from it on, for the trainer's traces."""
    messages = [{"role": message.role, "content": message.text} for message in rollout.messages]
    first = next((at for at, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    return messages[:first], messages[first:]


def _deviation(rewards: list[float]) -> float:
    if not rewards:
        return math.nan
    mean = math.fsum(rewards) / len(rewards)
    return math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards))

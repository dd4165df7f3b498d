"""Continuous batching in one thread: requests join and leave between decode steps.

A request's life: `submit` hands back a future and wakes the thread; the sequence waits for a place;
what the prefix cache holds of its prompt is copied in; the rest is computed in pieces, beside the
other sequences' decode steps; then it gains a token per step; a stop id, the length limit or an
abort ends it, its blocks go to the cache and its future is resolved. Cancelling the future at any
time frees the place at the next step.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

from transports.embedded.cache import BLOCK_TOKENS, PrefixCache
from transports.embedded.jobs import (
    Completion,
    EngineClosedError,
    EngineStats,
    FinishReason,
    FirstTokens,
    Job,
    PauseMode,
    Running,
    VersionSpan,
)
from transports.embedded.model import Chunk, Model
from transports.embedded.sampling import LogprobsMode, Sampled, SamplerState, sample


class Engine:
    """Samples completions of many prompts at once. `submit` and the rest may be called from any thread."""

    def __init__(
        self,
        model: Model,
        *,
        max_running: int = 256,
        chunk_tokens: int = 512,
        cache_tokens: int = 131_072,
        logprobs_mode: LogprobsMode = "raw_logprobs",
    ) -> None:
        self.model = model
        self.logprobs_mode: LogprobsMode = logprobs_mode
        self.max_running = max_running
        self.chunk_tokens = chunk_tokens
        """Prompt tokens computed in one step at most, so that a long prompt does not stall the others."""
        self.cache = PrefixCache(cache_tokens)
        self._wake = threading.Condition()
        self._calls: deque[Callable[[], None]] = deque()
        self._waiting: list[Running] = []
        self._held: list[Running] = []
        """Arrived during a pause; they wait for `resume`."""
        self._running: list[Running] = []
        self._paused: PauseMode | None = None
        self._drained: list[Future[None]] = []
        self._version = "default"
        self._epoch = 0
        self._generator = np.random.default_rng()
        self._arrivals = itertools.count()
        self._counts = {"prompt": 0, "completion": 0, "steps": 0}
        self._first_tokens = FirstTokens()
        self._finished = {"stop": 0, "length": 0, "abort": 0}
        self._thread: threading.Thread | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"paused ({self._paused})" if self._paused else "on"
        return f"<Engine {state}, {len(self._running)} running, {len(self._waiting)} waiting, {self._version}>"

    # Called from any thread.

    def start(self) -> None:
        """Starts the thread. May be called twice."""
        with self._wake:
            if self._closed:
                raise EngineClosedError("the engine was closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="embedded-engine", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Ends the thread; requests that still run fail with EngineClosedError. May be called twice."""
        with self._wake:
            self._closed = True
            self._wake.notify()
            thread = self._thread
        if thread is None:
            self._fail_all(EngineClosedError("the engine was closed"))
        elif thread is not threading.current_thread():
            thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether requests are being worked on."""
        return self._thread is not None and self._thread.is_alive() and not self._closed

    def submit(self, job: Job) -> Future[Completion]:
        """Queues a prompt. Cancelling the future aborts the request."""
        future: Future[Completion] = Future()
        seed = job.params.seed
        generator = self._generator if seed is None else np.random.default_rng(seed)
        state = SamplerState(job.params, generator, job.prompt_ids)
        sequence = Running(job, future, self.model.new_kv(), state, self._epoch, next(self._arrivals))
        future.add_done_callback(self._on_done)
        self._call(lambda: (self._held if self._paused else self._waiting).append(sequence))
        return future

    def abort(self, request_ids: Sequence[str]) -> None:
        """Ends requests by name; they answer what they have, with finish reason `abort`."""
        names = frozenset(request_ids)
        self._call(lambda: self._abort(lambda sequence: sequence.job.request_id in names))

    def pause(self, mode: PauseMode = "abort") -> Future[None]:
        """Stops sampling: requests in flight are aborted, waited for, or kept. Resolved when it holds."""
        done: Future[None] = Future()

        def act() -> None:
            self._paused = mode
            self._drained.append(done)
            if mode == "abort":
                self._abort(lambda sequence: True)

        self._call(act)
        return done

    def resume(self) -> None:
        """Goes on, with what was kept and what arrived meanwhile."""

        def act() -> None:
            self._paused = None
            self._waiting += self._held
            self._held.clear()
            self._resolve_drained()

        self._call(act)

    def update_weights(self, folder: Path) -> Future[None]:
        """Takes the folder's weights from the next step on and empties the cache.

        Loads in the calling thread. Raises ValueError or OSError for a folder that does not fit.
        """
        model = Model.load(folder)
        if model.config != self.model.config:
            raise ValueError(f"{folder} holds another configuration than the model that runs")
        done: Future[None] = Future()

        def act() -> None:
            self.model = model
            self._epoch += 1
            self.cache.clear()
            done.set_result(None)

        self._call(act)
        return done

    def set_weight_version(self, version: str) -> Future[None]:
        """Names the weights: tokens sampled from now on carry this version."""
        done: Future[None] = Future()

        def act() -> None:
            self._version = version
            done.set_result(None)

        self._call(act)
        return done

    def stats(self) -> EngineStats:
        """A snapshot; the numbers are each right, not taken at one instant."""
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting) + len(self._held),
            cache_usage=self.cache.usage,
            cache_queries=self.cache.queries,
            cache_hits=self.cache.hits,
            prompt_tokens=self._counts["prompt"],
            completion_tokens=self._counts["completion"],
            steps=self._counts["steps"],
            finished=dict(self._finished),
            first_token_s=self._first_tokens.cumulative(),
            first_token_sum_s=self._first_tokens.sum_s,
            paused=self._paused is not None,
            weight_version=self._version,
        )

    def _call(self, act: Callable[[], None]) -> None:
        with self._wake:
            if self._closed:
                raise EngineClosedError("the engine was closed")
            self._calls.append(act)
            self._wake.notify()

    def _on_done(self, future: Future[Completion]) -> None:
        if future.cancelled():
            with self._wake:
                self._wake.notify()

    # The engine's thread.

    def _work(self) -> None:
        try:
            # One thread in the matrix products: these are too small to share, and BLAS threads that
            # spin for work while the client's own thread wants a core cost ten times what they give.
            with threadpool_limits(1, user_api="blas"):
                while self._next_calls():
                    self._turn()
            self._fail_all(EngineClosedError("the engine was closed"))
        except BaseException as error:
            # Nobody joins this thread to see it fail: every request must be told, and later ones refused.
            self._closed = True
            self._fail_all(error)
            raise

    def _turn(self) -> None:
        self._drop_cancelled()
        self._admit()
        if self._running and self._paused != "keep":
            self._step()
        if self._paused and (self._paused == "keep" or not (self._running or self._waiting)):
            self._resolve_drained()

    def _next_calls(self) -> bool:
        """Waits until there is something to do, and does what was asked; False when it is over."""
        with self._wake:
            while not (self._closed or self._calls or self._has_work()):
                self._wake.wait()
            if self._closed:
                return False
            calls = list(self._calls)
            self._calls.clear()
        for call in calls:
            call()
        return True

    def _has_work(self) -> bool:
        if self._paused == "keep":
            return any(s.future.cancelled() for s in (*self._running, *self._waiting, *self._held))
        return bool(self._running or self._waiting) or any(s.future.cancelled() for s in self._held)

    def _drop_cancelled(self) -> None:
        for sequences in (self._running, self._waiting, self._held):
            gone = [sequence for sequence in sequences if sequence.future.cancelled()]
            for sequence in gone:
                self._finished["abort"] += 1
                self._keep_blocks(sequence)
                sequences.remove(sequence)

    def _abort(self, chosen: Callable[[Running], bool]) -> None:
        for sequences in (self._running, self._waiting, self._held):
            for sequence in [s for s in sequences if chosen(s)]:
                sequences.remove(sequence)
                self._finish(sequence, "abort")

    def _admit(self) -> None:
        if self._paused == "keep" or not self._waiting:
            return
        # A new prompt enters only when this step has room for some of it: a prompt that comes a step
        # later finds in the cache what its neighbours of the same group have just computed.
        budget = self.chunk_tokens - sum(s.prompt_left for s in self._running if s.prompt_left > 0)
        self._waiting.sort(key=lambda s: (s.job.priority, s.arrival))
        while self._waiting and budget > 0 and len(self._running) < self.max_running:
            sequence = self._waiting.pop(0)
            sequence.epoch = self._epoch
            # Room for the usual answer at once: growing later copies everything.
            sequence.kv.reserve(len(sequence.job.prompt_ids) + min(sequence.job.params.max_tokens, 256))
            sequence.cached = self.cache.restore(sequence.job.prompt_ids, sequence.job.cache_salt, sequence.kv)
            self._counts["prompt"] += len(sequence.job.prompt_ids)
            self._running.append(sequence)
            budget -= sequence.prompt_left

    def _step(self) -> None:
        """One forward pass: a token for each sequence that decodes, and a piece of the prompts that do not yet."""
        budget = self.chunk_tokens
        chunks: list[Chunk] = []
        sampled: list[tuple[int, Running]] = []
        for sequence in self._running:
            left = sequence.prompt_left
            if left <= 0:
                ids: Sequence[int] = sequence.state.completion_ids[-1:]
            elif budget > 0:
                have = sequence.kv.length
                ids = sequence.job.prompt_ids[have : have + min(left, budget)]
                budget -= len(ids)
            else:
                continue
            if len(ids) >= left:
                sampled.append((len(chunks), sequence))
            chunks.append(Chunk(ids, sequence.kv))
        logits = self.model.forward(chunks)
        self._counts["steps"] += 1
        if sampled:
            states = [sequence.state for _, sequence in sampled]
            tokens = sample(logits[[row for row, _ in sampled]], states, self.logprobs_mode)
            for row, (_, sequence) in enumerate(sampled):
                self._take(sequence, tokens, row)

    def _take(self, sequence: Running, tokens: Sampled, row: int) -> None:
        """Adds one sampled token to its sequence and ends the sequence where it is the last."""
        params, ids = sequence.job.params, sequence.state.completion_ids
        if not ids:
            self._first_tokens.add(time.monotonic() - sequence.arrived_at)
        if not ids and len(sequence.job.prompt_ids) >= 2 * BLOCK_TOKENS:
            self._keep_blocks(sequence)  # now, for the prompt's neighbours in its group
        token = tokens.ids[row]
        ids.append(token)
        sequence.logprobs.append(tokens.logprobs[row])
        sequence.ranks.append(tokens.ranks[row])
        sequence.top.append(tokens.top[row])
        if sequence.spans and sequence.spans[-1].version == self._version:
            sequence.spans[-1] = VersionSpan(self._version, sequence.spans[-1].start, len(ids))
        else:
            sequence.spans.append(VersionSpan(self._version, len(ids) - 1, len(ids)))
        self._counts["completion"] += 1
        stops = sequence.job.stops_on_text
        if (token in params.stop_ids or (stops is not None and stops(ids))) and len(ids) >= params.min_tokens:
            reason: FinishReason = "stop"
        elif len(ids) >= params.max_tokens or len(sequence.job.prompt_ids) + len(ids) >= self.model.config.context:
            reason = "length"
        else:
            return
        self._running.remove(sequence)
        self._finish(sequence, reason)

    def _finish(self, sequence: Running, reason: FinishReason) -> None:
        self._finished[reason] += 1
        self._keep_blocks(sequence)
        completion = Completion(
            ids=sequence.state.completion_ids,
            logprobs=sequence.logprobs,
            ranks=sequence.ranks,
            top=sequence.top,
            finish_reason=reason,
            cached_tokens=sequence.cached,
            weight_versions=sequence.spans,
        )
        # False where the caller has just cancelled: then nobody waits for the result.
        if sequence.future.set_running_or_notify_cancel():
            sequence.future.set_result(completion)

    def _keep_blocks(self, sequence: Running) -> None:
        if sequence.epoch == self._epoch and sequence.kv.length >= BLOCK_TOKENS:
            ids = [*sequence.job.prompt_ids, *sequence.state.completion_ids]
            self.cache.store(ids, sequence.job.cache_salt, sequence.kv)

    def _resolve_drained(self) -> None:
        for future in self._drained:
            future.set_result(None)
        self._drained.clear()

    def _fail_all(self, error: BaseException) -> None:
        with self._wake:
            calls = list(self._calls)
            self._calls.clear()
        for call in calls:  # so that what was submitted last is among the sequences, and pauses are known
            call()
        for sequence in (*self._running, *self._waiting, *self._held):
            if sequence.future.set_running_or_notify_cancel():
                sequence.future.set_exception(error)
        for sequences in (self._running, self._waiting, self._held):
            sequences.clear()
        for future in self._drained:
            future.set_exception(error)
        self._drained.clear()

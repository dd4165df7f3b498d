"""Continuous batching: joining, leaving, reusing, pausing, updating."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from transports.embedded import MODEL_DIR
from transports.embedded.engine import Engine
from transports.embedded.jobs import Completion, EngineClosedError, Job
from transports.embedded.model import Chunk, Model
from transports.embedded.sampling import SamplingParams, log_softmax
from transports.embedded.weights_file import read_weights

PROMPT = np.random.default_rng(3).integers(0, 900, 70).tolist()


def job(prompt: list[int] = PROMPT, name: str = "r", salt: str | None = None, priority: int = 0, **params: Any) -> Job:
    """A job that ignores stop ids unless told otherwise."""
    settings = SamplingParams(**{"max_tokens": 20, "seed": 1, **params})
    return Job(request_id=name, prompt_ids=prompt, params=settings, cache_salt=salt, priority=priority)


def until(holds: Callable[[], bool]) -> None:
    """Waits for the engine's thread to get somewhere."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "the engine did not get there"
        time.sleep(0.002)


def recomputed(model: Model, ids: list[int], completion: Completion) -> np.ndarray[Any, Any]:
    """Logprobs of a completion computed in one piece, without any cache."""
    whole = [*ids, *completion.ids]
    table = log_softmax(model.forward([Chunk(whole, model.new_kv())], every=True))
    return table[np.arange(len(ids) - 1, len(whole) - 1), completion.ids]


def test_logprobs_are_those_of_the_whole_sequence(engine: Engine, model: Model) -> None:
    """Decoding beside others, each sampled token has the logprob that one pass over the whole gives it."""
    prompts = [PROMPT[:length] for length in (1, 5, 33, 70)]
    results = [f.result(60) for f in [engine.submit(job(ids, seed=n)) for n, ids in enumerate(prompts)]]
    for ids, completion in zip(prompts, results, strict=True):
        np.testing.assert_allclose(completion.logprobs, recomputed(model, ids, completion), atol=1e-4, rtol=0)


def test_the_next_turn_reuses_the_last(engine: Engine, model: Model) -> None:
    """A prompt that goes on from prompt and completion takes their whole blocks, and gets the same logprobs."""
    first = engine.submit(job()).result(60)
    longer = [*PROMPT, *first.ids, *PROMPT[:10]]
    second = engine.submit(job(longer)).result(60)
    assert second.cached_tokens == (len(PROMPT) + len(first.ids) - 1) // 16 * 16
    np.testing.assert_allclose(second.logprobs, recomputed(model, longer, second), atol=1e-4, rtol=0)


def test_a_salt_keeps_prompts_apart(engine: Engine) -> None:
    """The same prompt under another salt is computed anew, and samples the same."""
    plain, salted, again = (engine.submit(job(salt=salt)).result(60) for salt in (None, "x", "x"))
    assert (plain.cached_tokens, salted.cached_tokens, again.cached_tokens) == (0, 0, 64)
    assert plain.ids == salted.ids == again.ids


def test_a_seed_repeats_a_completion_in_any_company(engine: Engine) -> None:
    """With its own seed a request samples the same alone and in a crowd."""
    alone = engine.submit(job(seed=9)).result(60)
    crowd = [engine.submit(job(seed=seed)) for seed in range(8, 24)]
    assert crowd[1].result(60).ids == alone.ids
    assert len({tuple(future.result(60).ids) for future in crowd}) > 1


def test_a_stop_id_ends_and_is_kept(engine: Engine) -> None:
    """The stop id is the completion's last token; before min_tokens it cannot come."""
    every = frozenset(range(2048))
    assert len(engine.submit(job(stop_ids=every)).result(60).ids) == 1
    completion = engine.submit(job(stop_ids=every - {5}, min_tokens=3)).result(60)
    assert (completion.ids[:3], completion.finish_reason) == ([5, 5, 5], "stop")


def test_cancelling_frees_the_place(engine: Engine) -> None:
    """A cancelled request leaves the batch while its neighbour goes on."""
    long, short = engine.submit(job(max_tokens=5000)), engine.submit(job(max_tokens=200))
    until(lambda: engine.stats().running == 2)
    assert long.cancel()
    until(lambda: engine.stats().running < 2)
    assert len(short.result(60).ids) == 200
    assert engine.stats().finished == {"stop": 0, "length": 1, "abort": 1}


def test_an_abort_by_name_answers_what_there_is(engine: Engine) -> None:
    """An aborted request resolves with its tokens so far."""
    future = engine.submit(job(name="a", max_tokens=5000))
    until(lambda: engine.stats().completion_tokens > 3)
    engine.abort(["a"])
    completion = future.result(60)
    assert completion.finish_reason == "abort"
    assert len(completion.ids) == len(completion.logprobs) > 3


def test_a_long_prompt_does_not_stall_the_others(model: Model) -> None:
    """While a long prompt is computed in pieces, a running request gains a token per piece."""
    engine = Engine(model, chunk_tokens=64)
    engine.start()
    try:
        running = engine.submit(job(PROMPT[:5], max_tokens=5000))
        until(lambda: engine.stats().completion_tokens > 0)
        before = engine.stats()
        engine.submit(job(PROMPT * 10, name="long", max_tokens=1)).result(60)
        after = engine.stats()
        assert after.completion_tokens - before.completion_tokens >= 700 // 64
        running.cancel()
    finally:
        engine.close()


def test_no_more_run_than_allowed_and_the_urgent_go_first(model: Model) -> None:
    """Beyond `max_running` requests wait, and the lowest priority number is taken first."""
    engine = Engine(model, max_running=1)
    done: list[str] = []
    futures: list[Future[Completion]] = []
    for name, priority in (("late", 5), ("soon", 1), ("middle", 3)):
        future = engine.submit(job(name=name, priority=priority, max_tokens=3))
        future.add_done_callback(lambda _, name=name: done.append(name))  # type: ignore[misc]
        futures.append(future)
    engine.start()
    wait(futures, 5)
    engine.close()
    assert done == ["soon", "middle", "late"]


@pytest.mark.slow
def test_an_update_in_mid_turn_changes_the_version(engine: Engine, tmp_path: Path) -> None:
    """Tokens before and after an update carry their own version, without gap or overlap; the cache is emptied."""
    shutil.copytree(MODEL_DIR, tmp_path / "new")
    weights = load_file(tmp_path / "new" / "model.safetensors")
    save_file({name: value * np.float16(0.9) for name, value in weights.items()}, tmp_path / "new/model.safetensors")
    future = engine.submit(job(max_tokens=400))
    until(lambda: engine.stats().completion_tokens > 5)
    engine.pause("keep").result(60)
    engine.update_weights(tmp_path / "new").result(60)
    engine.set_weight_version("7").result(60)
    assert engine.cache.usage == 0
    engine.resume()
    completion = future.result(60)
    first, second = completion.weight_versions
    assert (first.version, first.start, second.version, second.end) == ("default", 0, "7", 400)
    assert first.end == second.start > 5
    # What was computed with two sets of weights must not be found by later prompts.
    assert engine.submit(job(max_tokens=1)).result(60).cached_tokens == 0


def test_a_folder_that_does_not_fit_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    """Weights of another shape, or none, are refused and the old ones stay."""
    with pytest.raises(OSError, match="config"):
        engine.update_weights(tmp_path)
    shutil.copytree(MODEL_DIR, tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 4', '"num_hidden_layers": 2'))
    with pytest.raises(ValueError, match="another configuration"):
        engine.update_weights(tmp_path / "other")
    assert len(engine.submit(job()).result(60).ids) == 20


def test_pause_keep_freezes_and_goes_on(engine: Engine, model: Model) -> None:
    """What was kept in flight samples nothing while paused and ends as if nothing had been."""
    future = engine.submit(job(max_tokens=200))
    until(lambda: engine.stats().completion_tokens > 3)
    engine.pause("keep").result(60)
    sampled = engine.stats().completion_tokens
    later = engine.submit(job(name="later"))
    time.sleep(0.05)
    assert engine.stats().completion_tokens == sampled
    assert not later.done()
    engine.resume()
    np.testing.assert_allclose(
        future.result(60).logprobs, recomputed(model, PROMPT, future.result(60)), atol=1e-4, rtol=0
    )
    assert len(later.result(60).ids) == 20


def test_pause_wait_lets_the_running_end(engine: Engine) -> None:
    """The pause holds when what was in flight has ended; what comes after waits for resume."""
    future = engine.submit(job(max_tokens=100))
    paused = engine.pause("wait")
    later = engine.submit(job())
    paused.result(60)
    assert future.done()
    assert not later.done()
    engine.resume()
    assert len(later.result(60).ids) == 20


def test_pause_abort_ends_the_running(engine: Engine) -> None:
    """Requests in flight answer what they have, with finish reason abort."""
    future = engine.submit(job(max_tokens=5000))
    until(lambda: engine.stats().completion_tokens > 3)
    engine.pause("abort").result(60)
    assert future.result(60).finish_reason == "abort"


def test_a_kept_request_can_be_cancelled(engine: Engine) -> None:
    """Cancelling during a pause frees the place without resume."""
    future = engine.submit(job(max_tokens=5000))
    until(lambda: engine.stats().running == 1)
    engine.pause("keep").result(60)
    future.cancel()
    until(lambda: engine.stats().running == 0)


def test_closing_ends_the_thread_and_tells_everyone(model: Model) -> None:
    """No thread outlives its engine, and nobody waits forever."""
    engine = Engine(model)
    engine.start()
    future = engine.submit(job(max_tokens=5000))
    until(lambda: engine.stats().running == 1)
    engine.close()
    engine.close()
    with pytest.raises(EngineClosedError):
        future.result(60)
    with pytest.raises(EngineClosedError):
        engine.submit(job())
    assert not engine.is_alive
    assert "closed" in repr(engine)


def test_closing_before_start_tells_the_waiting(model: Model) -> None:
    """An engine that never ran fails what was queued."""
    engine = Engine(model)
    future = engine.submit(job())
    engine.close()
    with pytest.raises(EngineClosedError):
        future.result(60)


def test_the_context_ends_a_completion(model: Model) -> None:
    """A completion that fills the context ends by length, and every position is used."""
    small = Model(dataclasses.replace(model.config, context=73), read_weights(MODEL_DIR / "model.safetensors"))
    engine = Engine(small)
    engine.start()
    completion = engine.submit(job(PROMPT, max_tokens=100)).result(60)
    engine.close()
    assert (completion.finish_reason, len(completion.ids)) == ("length", 73 - len(PROMPT))

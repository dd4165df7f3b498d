"""Case seams/e28: packing many samples."""

from __future__ import annotations

import random
import time
from array import array

import pytest

from rollout.tokens.batch import pack
from rollout.tokens.samples import TrainingSample


@pytest.mark.slow
def test_packing_is_n_log_n() -> None:
    """Sixteen times the samples take far less than 256 times the time, which first fit over every bin takes."""
    chance = random.Random(0)
    seconds = {}
    for count in (2_000, 32_000):
        samples = [_sample(chance.randint(300, 500)) for _ in range(count)]
        started = time.process_time()
        pack(samples, max_tokens=600)
        seconds[count] = time.process_time() - started
    assert seconds[32_000] < max(1.0, 64 * seconds[2_000])


def _sample(length: int) -> TrainingSample:
    return TrainingSample(
        token_ids=array("i", [1]) * length,
        loss_mask=array("b", [1]) * length,
        logprobs=array("d", [0.0]) * length,
        weight_versions=[None] * length,
    )

"""What every test shares: property tests are not timed, since machines are noisy and timings belong in benchmarks."""

from __future__ import annotations

import gc
import shutil
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("rollout", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rollout")

# A suite that a script runs in its background ignores control-C, and so would every command that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What collection makes is there to stay: looking through it for garbage took a third of its time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with slightly other weights."""
    import numpy as np  # most tests need none of these
    from safetensors.numpy import load_file, save_file

    from transports.embedded import MODEL_DIR

    folder = tmp_path_factory.mktemp("weights") / "other"
    shutil.copytree(MODEL_DIR, folder)
    chance = np.random.default_rng(0)
    weights = {
        name: (value + chance.normal(0, 1e-3, value.shape)).astype(value.dtype)
        for name, value in load_file(MODEL_DIR / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder

"""These tests run in the environment that has the trainers (`make trainers`); elsewhere they are not collected."""

from __future__ import annotations

import importlib.util
import os
import warnings

#: Each trainer's tests, where it is.
_FILES = {"trl": "test_trl*.py", "torch": "test_own.py"}

collect_ignore_glob = [files for trainer, files in _FILES.items() if importlib.util.find_spec(trainer) is None]

# One of two cores is the trainer's, the other one the players': torch's threads would wait for each other, spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if importlib.util.find_spec("trl") is not None:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():  # what importing other packages warns of is theirs to mend
        warnings.simplefilter("ignore")
        import trl.experimental.async_grpo  # noqa: F401
        from trl import GRPOTrainer  # noqa: F401

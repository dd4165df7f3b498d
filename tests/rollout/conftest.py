"""What the tests of the core share: the embedded model's tokenizer, the smallest real one at hand."""

from __future__ import annotations

from typing import Any

import pytest

from rollout.codec.tokenizer import load_tokenizer
from transports.embedded import MODEL_DIR


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return load_tokenizer(str(MODEL_DIR))

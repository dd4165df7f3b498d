"""The live servers, one of each for all tests. One that cannot be started is a failure, never a skip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.servers import Server, dynamo_mocker, dynamo_vllm, vllm_server
from transports.embedded import MODEL_DIR


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def vllm(logs: Path) -> Iterator[Server]:
    with vllm_server(MODEL_DIR, logs) as server:
        yield server


@pytest.fixture(scope="session")
def dynamo(logs: Path) -> Iterator[Server]:
    with dynamo_mocker(MODEL_DIR, logs) as server:
        yield server


@pytest.fixture(scope="session")
def dynamo_engine(logs: Path) -> Iterator[Server]:
    """Dynamo with a real vLLM worker."""
    with dynamo_vllm(MODEL_DIR, logs) as server:
        yield server

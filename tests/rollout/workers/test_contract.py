"""Processes of this machine keep the workers' contract."""

from __future__ import annotations

import pytest

from tests.rollout.workers.contract import Launch, WorkersContract


@pytest.mark.slow
class TestLocalProcesses(WorkersContract):
    """`launch="local"`."""

    @pytest.fixture
    def launch(self) -> Launch:
        return {}

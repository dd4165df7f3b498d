"""Ray actors keep the workers' contract, as processes of one machine do."""

from __future__ import annotations

import pytest

from tests.live.ray.cluster import Cluster
from tests.rollout.workers.contract import Launch, WorkersContract

pytestmark = [pytest.mark.live, pytest.mark.ray]


class TestRayActors(WorkersContract):
    """`launch="ray"`."""

    @pytest.fixture
    def launch(self, ray_cluster: Cluster) -> Launch:
        return {"launch": "ray", "ray_address": ray_cluster.address, "ray_num_cpus": 0.5}

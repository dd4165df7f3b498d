"""One Ray cluster for the tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live.ray.cluster import Cluster, cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """A head and two nodes."""
    with cluster() as running:
        yield running

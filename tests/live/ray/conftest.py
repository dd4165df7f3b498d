"""One Ray cluster for the tests that leave it as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.live.ray.cluster import Cluster, cluster

#: As the clusters that tests start: a token in the home folder would be asked of some and not of others.
os.environ["RAY_AUTH_MODE"] = "disabled"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """A head and two nodes."""
    with cluster() as running:
        yield running

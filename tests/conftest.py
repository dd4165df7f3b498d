"""What every test shares: property tests are not timed, since machines are noisy and timings belong in benchmarks."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("rollout", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rollout")

"""What every test shares: property tests are not timed, since machines are noisy and timings belong in benchmarks."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

settings.register_profile("rollout", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rollout")

# A suite that a script runs in its background ignores control-C, and so would every command that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

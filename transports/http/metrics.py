"""A server's metrics in Prometheus' text form, by vLLM's, Dynamo's or SGLang's names (`docs/wire.md`)."""

from __future__ import annotations

import contextlib
import math
import re
from collections import defaultdict

from rollout.histogram import Histogram
from rollout.transport import ServerLoad

#: Time to first token, as vLLM's engine, Dynamo's frontend and SGLang keep it (seen on vLLM 0.32, on a frontend
#: before a mocker and on SGLang 0.5.23, for answers that are not streamed).
FIRST_TOKEN = (
    "vllm:time_to_first_token_seconds",
    "dynamo_frontend_time_to_first_token_seconds",
    "sglang:time_to_first_token_seconds",
)

_BOUND = re.compile(r'\ble="([^"]+)"')


def read_load(metrics: str) -> ServerLoad:
    """How busy the server is."""
    values: dict[str, list[float]] = {}
    for line in metrics.splitlines():
        if line.startswith(("vllm:", "dynamo_frontend_", "sglang:")):
            name = line.partition("{")[0].partition(" ")[0]
            if (value := _value(line)) is not None:
                values.setdefault(name, []).append(value)

    def total(*names: str) -> int | None:
        found = [sum(values[name]) for name in names if name in values]
        return int(found[0]) if found and math.isfinite(found[0]) else None

    inflight, waiting = total("dynamo_frontend_inflight_requests"), total("dynamo_frontend_queued_requests")
    if waiting is not None and inflight is not None:
        return ServerLoad(running=max(0, inflight - waiting), waiting=waiting)
    return ServerLoad(
        running=total("vllm:num_requests_running", "sglang:num_running_reqs"),
        waiting=total("vllm:num_requests_waiting", "sglang:num_queue_reqs"),
        cache_usage=max(values.get("vllm:kv_cache_usage_perc", values.get("sglang:token_usage", ())), default=None),
        preemptions=total("vllm:num_preemptions_total"),
    )


def read_first_tokens(metrics: str) -> Histogram | None:
    """Times to first token of all requests that the server answered; None where it keeps none."""
    for name in FIRST_TOKEN:
        if (found := read_histogram(metrics, name)) is not None:
            return found
    return None


def read_histogram(metrics: str, name: str) -> Histogram | None:
    """The histogram of this name, summed over its labels; None where there is none."""
    counts: defaultdict[float, float] = defaultdict(float)
    for line in metrics.splitlines():
        if line.startswith(f"{name}_bucket{{") and (bound := _BOUND.search(line)):
            with contextlib.suppress(ValueError):
                counts[float(bound[1])] += _value(line) or 0.0
    if not counts:
        return None
    bounds = sorted(counts)
    return Histogram(tuple(bounds), tuple(counts[bound] for bound in bounds))


def _value(line: str) -> float | None:
    """The number that a line ends in; None where it is none, or NaN, which Prometheus writes for what is not known."""
    try:
        value = float(line.rpartition(" ")[2])
    except ValueError:
        return None
    return value if math.isfinite(value) else None

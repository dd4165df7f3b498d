"""Prometheus' text, as the servers write it."""

from __future__ import annotations

import math

from transports.http.metrics import read_first_tokens, read_load

VLLM = """# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 3.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="0.001",model_name="m"} 2.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="+Inf",model_name="m"} 2.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="0",model_name="m"} 4.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:num_preemptions_total{engine="0",model_name="m"} 7.0
"""
DYNAMO = """dynamo_frontend_time_to_first_token_seconds_bucket{model="m",le="0.5"} 4
dynamo_frontend_time_to_first_token_seconds_bucket{model="m",le="+Inf"} 4
dynamo_frontend_inflight_requests{model="m"} 5
dynamo_frontend_queued_requests{model="m"} 2
"""

SGLANG = """sglang:time_to_first_token_seconds_bucket{engine_type="unified",le="0.4",model_name="m"} 1.0
sglang:time_to_first_token_seconds_bucket{engine_type="unified",le="+Inf",model_name="m"} 2.0
sglang:num_running_reqs{engine_type="unified",model_name="m"} 3.0
sglang:num_queue_reqs{engine_type="unified",model_name="m"} 1.0
sglang:token_usage{engine_type="unified",model_name="m"} 0.5
"""


def test_engines_of_one_server_are_summed() -> None:
    """Data-parallel engines each have their own series."""
    found = read_first_tokens(VLLM)
    assert found is not None
    assert (found.bounds, found.counts) == ((0.001, math.inf), (3.0, 5.0))
    load = read_load(VLLM)
    assert (load.running, load.waiting, load.cache_usage, load.preemptions) == (5, 2, 0.25, 7)


def test_dynamo_by_its_own_names() -> None:
    """Its frontend counts what is in flight, queued ones included."""
    found = read_first_tokens(DYNAMO)
    assert found is not None
    assert found.total == 4
    load = read_load(DYNAMO)
    assert (load.running, load.waiting) == (3, 2)


def test_sglang_by_its_own_names() -> None:
    """As it writes them with --enable-metrics."""
    found = read_first_tokens(SGLANG)
    assert found is not None
    assert found.total == 2
    load = read_load(SGLANG)
    assert (load.running, load.waiting, load.cache_usage) == (3, 1, 0.5)


def test_metrics_that_say_nothing() -> None:
    """No histogram is None, not an empty one."""
    assert read_first_tokens("up 1\n") is None
    assert read_load("up 1\n").running is None


def test_a_gauge_that_is_no_number_is_not_said() -> None:
    """NaN and infinities, which Prometheus' format has, are what a server does not say."""
    load = read_load(
        'vllm:num_requests_running{a="b"} NaN\nvllm:num_requests_waiting +Inf\nvllm:kv_cache_usage_perc NaN'
    )
    assert (load.running, load.waiting, load.cache_usage) == (None, None, None)
    text = 'vllm:time_to_first_token_seconds_bucket{le="1.0"} NaN\nvllm:time_to_first_token_seconds_bucket{le="2.0"} 3'
    found = read_first_tokens(text)
    assert found is not None
    assert list(found.counts) == [0.0, 3.0]


def test_sums_that_no_number_holds_are_not_known() -> None:
    """Each may be one, and their sum none."""
    assert read_load("vllm:num_requests_running 1e308\n" * 2).running is None

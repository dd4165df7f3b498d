"""The engine's counters in Prometheus' text form, under the names of the server that is played."""

from __future__ import annotations

import re
from typing import Literal

from transports.embedded.jobs import FIRST_TOKEN_BOUNDS, EngineStats


def metrics_text(stats: EngineStats, model: str, dialect: Literal["vllm", "sglang", "dynamo"]) -> str:
    """One line per number, with vLLM's, SGLang's or Dynamo's names."""
    if dialect == "dynamo":
        label = f'{{model="{model}"}}'
        rows: list[tuple[str, str, str, float]] = [
            ("gauge", "dynamo_frontend_inflight_requests", label, stats.running + stats.waiting),
            ("gauge", "dynamo_frontend_queued_requests", label, stats.waiting),
            ("counter", "dynamo_frontend_output_tokens_total", label, stats.completion_tokens),
        ]
    elif dialect == "sglang":
        label = f'{{engine_type="unified",model_name="{model}"}}'
        rows = [
            ("gauge", "sglang:num_running_reqs", label, stats.running),
            ("gauge", "sglang:num_queue_reqs", label, stats.waiting),
            ("gauge", "sglang:token_usage", label, stats.cache_usage),
            ("counter", "sglang:prompt_tokens_total", label, stats.prompt_tokens),
            ("counter", "sglang:generation_tokens_total", label, stats.completion_tokens),
            ("counter", "sglang:cached_tokens_total", label, stats.cache_hits),
        ]
    else:
        label = f'{{engine="0",model_name="{model}"}}'
        rows = [
            ("gauge", "vllm:num_requests_running", label, stats.running),
            ("gauge", "vllm:num_requests_waiting", label, stats.waiting),
            ("gauge", "vllm:kv_cache_usage_perc", label, stats.cache_usage),
            ("counter", "vllm:prefix_cache_queries_total", label, stats.cache_queries),
            ("counter", "vllm:prefix_cache_hits_total", label, stats.cache_hits),
            ("counter", "vllm:num_preemptions_total", label, 0),
            ("counter", "vllm:prompt_tokens_total", label, stats.prompt_tokens),
            ("counter", "vllm:generation_tokens_total", label, stats.completion_tokens),
        ]
        for reason, count in stats.finished.items():
            labels = f'{label[:-1]},finished_reason="{reason}"}}'
            rows.append(("counter", "vllm:request_success_total", labels, count))
    prefix = {"vllm": "vllm:", "sglang": "sglang:", "dynamo": "dynamo_frontend_"}[dialect]
    rows += _histogram(f"{prefix}time_to_first_token_seconds", label, stats)
    lines: list[str] = []
    said = set[str]()
    for kind, name, labels, value in rows:
        family = re.sub("_(bucket|sum|count)$", "", name) if kind == "histogram" else name
        if family not in said:
            said.add(family)
            lines.append(f"# TYPE {family} {kind}")
        lines.append(f"{name}{labels} {float(value)}")
    return "\n".join(lines) + "\n"


def _histogram(name: str, label: str, stats: EngineStats) -> list[tuple[str, str, str, float]]:
    bounds = [*map(str, FIRST_TOKEN_BOUNDS), "+Inf"]
    rows = [
        ("histogram", f"{name}_bucket", f'{label[:-1]},le="{bound}"}}', count)
        for bound, count in zip(bounds, stats.first_token_s, strict=True)
    ]
    rows.append(("histogram", f"{name}_sum", label, stats.first_token_sum_s))
    rows.append(("histogram", f"{name}_count", label, stats.first_token_s[-1]))
    return rows

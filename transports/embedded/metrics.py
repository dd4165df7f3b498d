"""The engine's counters in Prometheus' text form, under the names of the server that is played."""

from __future__ import annotations

from typing import Literal

from transports.embedded.jobs import EngineStats


def metrics_text(stats: EngineStats, model: str, dialect: Literal["vllm", "dynamo"]) -> str:
    """One line per number, with vLLM's or Dynamo's names."""
    if dialect == "dynamo":
        label = f'{{model="{model}"}}'
        rows: list[tuple[str, str, str, float]] = [
            ("gauge", "dynamo_frontend_inflight_requests", label, stats.running + stats.waiting),
            ("gauge", "dynamo_frontend_queued_requests", label, stats.waiting),
            ("counter", "dynamo_frontend_output_tokens_total", label, stats.completion_tokens),
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
    lines: list[str] = []
    for kind, name, labels, value in rows:
        if not any(line.startswith(f"# TYPE {name} ") for line in lines):
            lines.append(f"# TYPE {name} {kind}")
        lines.append(f"{name}{labels} {float(value)}")
    return "\n".join(lines) + "\n"

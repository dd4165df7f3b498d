"""Spans of a rollout, its turns and requests, as OpenTelemetry's own SDK records them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rollout import Env, Message, Step, user
from rollout.errors import ConfigError, RequestRefused
from tests.rollout.test_engine import Short, collect, engine
from transports.scripted import Fault, reply

SECRET = "the user's own words"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What is recorded, by a provider that lasts as long as the test."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def of(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name.startswith(name)]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


class Secret(Env):
    """What it says and raises must not be told."""

    def reset(self, task: Any) -> list[Message]:
        return [user(SECRET)]

    def step(self, message: Message) -> Step:
        raise ValueError(f"cannot read {SECRET} and {message.text}")


async def test_a_rollout_its_turns_and_their_requests(spans: InMemorySpanExporter) -> None:
    """Each is the parent of the next, in one trace a rollout, with the conventions' names."""
    running, _ = engine(tracing=True, max_tokens=7, sampling={"temperature": 0.5, "user": SECRET})
    async with running:
        await collect(running, 2)
    rollouts, turns, requests = of(spans, "invoke_agent Short"), of(spans, "turn"), of(spans, "chat ")
    assert (len(rollouts), len(turns), len(requests)) == (2, 4, 4)
    assert len({span.context.trace_id for span in rollouts}) == 2
    for above, below in ((rollouts, turns), (turns, requests)):
        ids = {span.context.span_id for span in above}
        assert all(span.parent is not None and span.parent.span_id in ids for span in below)
    told = attributes(rollouts[0])
    assert (told["gen_ai.operation.name"], told["gen_ai.agent.name"]) == ("invoke_agent", "Short")
    assert (told["rollout.reward"], told["rollout.stop"], told["rollout.turns"]) == (1.0, "done", 2)
    first, second = sorted(
        (span for span in turns if span.parent in [rollouts[0].context]), key=lambda s: s.start_time or 0
    )
    assert attributes(first)["rollout.fallback"] == "first_turn"
    assert (attributes(second)["rollout.route"], attributes(second)["rollout.fallback"]) == ("token_in", "")
    asked = attributes(requests[0])
    assert requests[0].kind is trace.SpanKind.CLIENT
    assert (asked["gen_ai.operation.name"], asked["gen_ai.request.max_tokens"]) == ("chat", 7)
    assert asked["gen_ai.request.temperature"] == 0.5
    assert SECRET not in asked.values()
    assert asked["gen_ai.usage.output_tokens"] > 0
    assert asked["gen_ai.usage.input_tokens"] > 0
    assert asked["gen_ai.response.finish_reasons"] == ("stop",)


async def test_a_servers_part_is_in_the_trace(spans: InMemorySpanExporter) -> None:
    """The request's own span is what the server's is beneath."""
    running, transport = engine(tracing=True)
    async with running:
        await collect(running, 1)
    sent = [request.trace["traceparent"].split("-")[1:3] for request in transport.requests]
    assert sent == [
        [format(span.context.trace_id, "032x"), format(span.context.span_id, "016x")] for span in of(spans, "chat ")
    ]


async def test_what_fails_is_said_by_its_kind(spans: InMemorySpanExporter) -> None:
    """A refused request's error stands at the request, the turn and the rollout."""
    running, _ = engine(Fault(RequestRefused(SECRET, status=400)), tracing=True)
    async with running:
        await collect(running, 1)
    kinds = [attributes(of(spans, name)[0])["error.type"] for name in ("chat ", "turn", "invoke_agent")]
    assert kinds == ["RequestRefused", "RequestRefused", "transport"]
    assert all(span.status.status_code is trace.StatusCode.ERROR for span in spans.get_finished_spans())


async def test_no_message_is_in_any_span(spans: InMemorySpanExporter) -> None:
    """Neither what was said nor what was raised about it."""
    running, _ = engine(reply("and the model's"), plays=Secret, tracing=True)
    async with running:
        (group,) = await collect(running, 1)
    assert SECRET in str(group.rollouts[0].failure)
    everything = json.dumps([json.loads(span.to_json()) for span in spans.get_finished_spans()])
    assert SECRET not in everything
    assert "the model's" not in everything
    assert attributes(of(spans, "invoke_agent")[0])["error.type"] == "environment"


async def test_an_environments_spans_are_beneath_its_rollout(spans: InMemorySpanExporter) -> None:
    """Also those of plain functions, which are called in threads."""

    class Traced(Short):
        async def step(self, message: Message) -> Step:
            with trace.get_tracer("mine").start_as_current_span("my step"):
                return await super().step(message)

    running, _ = engine(plays=Traced, tracing=True)
    async with running:
        await collect(running, 1)
    (played,) = of(spans, "invoke_agent")
    assert [span.parent for span in of(spans, "my step")] == [played.context] * 2


async def test_without_the_setting_there_is_nothing(spans: InMemorySpanExporter) -> None:
    """Also where a provider is there; servers get no header."""
    running, transport = engine()
    async with running:
        await collect(running, 2)
    assert spans.get_finished_spans() == ()
    assert all(not request.trace for request in transport.requests)


async def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its extra; without the setting nothing asks for it."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    running, _ = engine(tracing=True)
    with pytest.raises(ConfigError, match=r"^tracing needs opentelemetry, .*: pip install 'rollout-engine\[otel\]'$"):
        await running.__aenter__()
    running, _ = engine()
    async with running:
        await collect(running, 1)

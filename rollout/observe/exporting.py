"""Where spans go when nobody has said it: over OTLP, as OpenTelemetry's own variables have it, such as
OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME and OTEL_TRACES_SAMPLER.

For the command line and for worker processes, which begin without a provider. A trainer that has one keeps it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable

import anyio
import anyio.to_thread

from rollout.errors import not_installed

#: What spans say they are of, where OTEL_SERVICE_NAME does not.
SERVICE = "rollout"


@contextlib.asynccontextmanager
async def exporting(wanted: bool) -> AsyncIterator[None]:
    """Exports this process's spans while a block lasts, where that is `wanted`. Raises ConfigError."""
    if not wanted:
        yield
        return
    end = await anyio.to_thread.run_sync(export_spans)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):  # bounded: an exporter gives up after OTEL_EXPORTER_OTLP_TIMEOUT
            await anyio.to_thread.run_sync(end)


def export_spans() -> Callable[[], None]:
    """From now on this process's spans are exported, in the background; gives what sends the rest, within seconds.

    Raises ConfigError where the exporter is not installed.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise not_installed("tracing", error.name, "otel") from error
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return lambda: None
    named = {"service.name": os.environ.get("OTEL_SERVICE_NAME") or SERVICE}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    end: Callable[[], None] = provider.shutdown
    return end

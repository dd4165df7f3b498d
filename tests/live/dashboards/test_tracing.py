"""Spans of a real run arrive at a collector, as OTLP's own messages say them: from every process."""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.docs_kit import PROJECT, blocks, commands
from tests.live.dashboards.kit import MARKS, run

pytestmark = MARKS


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a collector, and the bodies that it was sent."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("section", ["Traces"])
def test_what_the_manual_prints_is_traced(section: str, collector: tuple[str, list[bytes]], tmp_path: Path) -> None:
    """Its command, made small, with this collector's address."""
    address, bodies = collector
    (block,) = [one for one in blocks(PROJECT / "docs" / "observe.md") if one.section == section]
    (line,) = commands(block.text)
    setting, program, _, *arguments = shlex.split(line)
    assert (setting.partition("=")[0], program) == ("OTEL_EXPORTER_OTLP_ENDPOINT", "rollout")
    env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
    run(*arguments, "-n", 2, "-r", 1, "--max-tokens", 4, cwd=tmp_path, env=env)
    spans = spans_of(bodies)
    assert sum(span.name == "invoke_agent GuessNumber" for _, span in spans) == 2


def spans_of(bodies: list[bytes]) -> list[tuple[Any, Any]]:
    """The spans that a collector was sent, each with whose it is."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    resources = [resource for body in bodies for resource in ExportTraceServiceRequest.FromString(body).resource_spans]
    return [(each.resource, span) for each in resources for scope in each.scope_spans for span in scope.spans]


def test_all_spans_of_a_run_arrive(collector: tuple[str, list[bytes]], tmp_path: Path) -> None:
    """As many as there are rollouts, turns and requests; the last ones, too, and under the service's name. Of two
    processes: what one does, the command's own, the manual's command shows."""
    address, bodies = collector
    env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": address}
    size = ["-n", 8, "-r", 2, "--max-tokens", 8, "--processes", 2]
    run("guess_number", *size, "--tracing", "-o", "run", cwd=tmp_path, env=env)
    found = spans_of(bodies)
    named = {(each.key, each.value.string_value) for resource, _ in found for each in resource.attributes}
    spans = [span for _, span in found]
    assert ("service.name", "rollout") in named
    names = [span.name.split(" ")[0] for span in spans]
    assert names.count("invoke_agent") == 16
    assert names.count("turn") == names.count("chat") >= 16
    assert len({span.trace_id for span in spans}) == 16

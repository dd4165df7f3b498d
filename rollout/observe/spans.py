"""Spans of OpenTelemetry: a rollout, its turns, and their requests, by the provider that the process has.

    invoke_agent GuessNumber             rollout.id, rollout.reward, rollout.stop; its failure's kind as error.type
      turn                               route, fallback, tokens, render_s and queue_s
        chat rollout-tiny                a request, its retries included: gen_ai.* by the GenAI conventions

What a span has are numbers and names: no message, prompt or answer, and no exception's text, which may quote one.
Servers get the request's `traceparent`. Code of an environment sees its rollout's span as the current one. Without the
setting `tracing` there is no `Spans`, and nothing is paid; with it, and without a provider, spans that nobody records.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rollout.door import type_name, well_formed
from rollout.errors import not_installed
from rollout.records import Rollout, Turn
from rollout.request import Reply, Request

if TYPE_CHECKING:
    from opentelemetry.trace import Span

#: Sampling parameters that the conventions name, by ours.
_PARAMETERS = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}


class Spans:
    """Makes spans, for one served model."""

    def __init__(self, model: str, server: str) -> None:
        """`server` is its kind. Raises ConfigError where OpenTelemetry is not installed."""
        try:
            from opentelemetry import propagate, trace
        except ImportError as error:
            raise not_installed("tracing", error.name, "otel") from error
        self._tracer = trace.get_tracer("rollout")
        self._trace, self._inject = trace, propagate.inject
        self._model, self._server = model, server

    def __repr__(self) -> str:
        return f"<Spans of {self._model}>"

    @contextlib.contextmanager
    def rollout(self, rollout: Rollout, env: str) -> Iterator[None]:
        """One rollout, from its start until it is closed."""
        about = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": env,
            "gen_ai.request.model": self._model,
            "rollout.id": well_formed(rollout.id),
            "rollout.task_index": rollout.task_index,
            "rollout.member": rollout.member,
        }
        with self._span(f"invoke_agent {env}", about) as span:
            try:
                yield
            finally:
                if span.is_recording():
                    self._tell_end(span, rollout)

    def _tell_end(self, span: Span, rollout: Rollout) -> None:
        span.set_attributes({"rollout.turns": len(rollout.turns), "rollout.staleness": rollout.staleness})
        failure = rollout.failure
        if failure is not None:
            self._fail(span, failure.kind.value)
        else:
            if rollout.reward_known:
                span.set_attribute("rollout.reward", rollout.reward)
            span.set_attribute("rollout.stop", rollout.stop.value if rollout.stop else "")

    @contextlib.contextmanager
    def turn(self, session_id: str, agent: str) -> Iterator[Callable[[Turn], None]]:
        """One turn: planned, sent, read. Gives what is to be told of it once it has ended well."""
        about = {"gen_ai.conversation.id": session_id, **({"gen_ai.agent.name": agent} if agent else {})}
        with self._span("turn", about) as span:

            def tell(turn: Turn) -> None:
                if span.is_recording():
                    span.set_attributes(_of_turn(turn))

            yield tell

    @contextlib.contextmanager
    def request(self, request: Request) -> Iterator[tuple[dict[str, str], Callable[[Reply], None]]]:
        """One request: the headers that carry the trace on, and what is to be told of the reply."""
        about: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": self._server,
            "gen_ai.request.model": self._model,
            "gen_ai.conversation.id": request.session_id,
            "rollout.request_id": request.request_id,
        }
        if request.max_tokens is not None:
            about["gen_ai.request.max_tokens"] = request.max_tokens
        about |= _parameters(request.sampling)
        with self._span(f"chat {self._model}", about, client=True) as span:

            def tell(reply: Reply) -> None:
                if span.is_recording():
                    span.set_attributes(_of_reply(reply))

            headers: dict[str, str] = {}
            self._inject(headers)
            yield headers, tell

    @contextlib.contextmanager
    def _span(self, name: str, about: Mapping[str, Any], *, client: bool = False) -> Iterator[Span]:
        kind = self._trace.SpanKind.CLIENT if client else self._trace.SpanKind.INTERNAL
        with self._tracer.start_as_current_span(
            name, kind=kind, attributes=about, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as error:
                self._fail(span, type_name(error))
                raise

    def _fail(self, span: Span, kind: str) -> None:
        span.set_attribute("error.type", kind)
        span.set_status(self._trace.StatusCode.ERROR)


def _of_turn(turn: Turn) -> dict[str, Any]:
    return {
        "rollout.route": turn.route.value,
        "rollout.fallback": turn.fallback.value if turn.fallback is not None else "",
        "rollout.render_s": turn.render_s,
        "rollout.queue_s": turn.queue_s,
        "gen_ai.usage.input_tokens": turn.prompt_tokens,
        "gen_ai.usage.output_tokens": turn.completion_tokens,
    }


def _of_reply(reply: Reply) -> dict[str, Any]:
    told = {
        "gen_ai.response.finish_reasons": [reply.finish_reason],
        "gen_ai.usage.input_tokens": reply.prompt_tokens or len(reply.prompt_ids or ()) or None,
        "gen_ai.usage.output_tokens": len(reply.completion_ids) if reply.completion_ids is not None else None,
        "gen_ai.usage.cache_read.input_tokens": reply.cached_tokens,
    }
    return {name: value for name, value in told.items() if value is not None}


def _parameters(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are numbers: whatever else is among them may be anything."""
    found = {name: sampling.get(ours) for ours, name in _PARAMETERS.items()}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}

"""OpenTelemetry's spans of inference requests, with the attributes of its GenAI conventions. Off, it costs nothing.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/. Whoever starts the gateway makes the tracer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pillion.core.snapshot import Key
from pillion.gateway.http import Head
from pillion.gateway.plans import Plan

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
CARRIED = ("traceparent", "tracestate")


class Tracing:
    def __init__(self, tracer: Tracer) -> None:
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = tracer
        self._kind, self._error = SpanKind.SERVER, StatusCode.ERROR
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, head: Head, key: Key, request_id: str) -> Trace:
        """Part of the client's trace, where it sent one."""
        carrier = {name: value for name in CARRIED if (value := head.first(name)) is not None}
        operation = OPERATIONS.get(head.path, "other")
        attributes = {
            "http.request.method": head.method,
            "url.path": head.path,
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "pillion",
            "pillion.request_id": request_id,
            "pillion.account": key.account,
            "pillion.key": key.id,
        }
        context = self._propagator.extract(carrier)
        span = self._tracer.start_span(operation, context, self._kind, attributes)
        return Trace(self, span)

    def carried(self, span: Span) -> dict[str, str]:
        """The fields that make what comes next a part of it."""
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return carrier

    def failed(self, span: Span, status: int) -> None:
        span.set_attribute("error.type", str(status))
        if status >= 500:
            span.set_status(self._error)


class Trace:
    """One request's span."""

    __slots__ = ("_span", "_tracing")

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing = tracing
        self._span = span

    def carried(self) -> dict[str, str]:
        return self._tracing.carried(self._span)

    def end(
        self, status: int, model: str, plan: Plan | None, tokens: tuple[int | None, ...], cold: bool
    ) -> None:
        """`tokens`: of the prompt, of these from a cache, of the answer; None where it is not known."""
        span = self._span
        attributes: dict[str, Any] = {"http.response.status_code": status, "gen_ai.request.model": model}
        if plan is not None:
            adapter, candidate = plan.route.adapter, plan.candidate
            attributes |= {
                "gen_ai.response.model": plan.route.base,
                "pillion.instance": candidate.instance.id,
                "pillion.replica": candidate.replica.id,
                "pillion.region": candidate.replica.region,
                "pillion.cold": cold,
            }
            if adapter is not None:
                attributes["pillion.adapter"] = adapter.id
                attributes["pillion.adapter.version"] = plan.route.version or 0
        names = ("input_tokens", "cache_read.input_tokens", "output_tokens")
        for name, count in zip(names, tokens, strict=False):
            if count is not None:
                attributes[f"gen_ai.usage.{name}"] = count
        span.set_attributes(attributes)
        if status >= 400:
            self._tracing.failed(span, status)
        span.end()

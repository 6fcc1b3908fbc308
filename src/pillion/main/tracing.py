"""Where spans go: to a collector, by OTLP over HTTP, where one is configured. Needs `pillion[otel]`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from pillion import __version__
from pillion.core.spans import Carried, NoSpans, Span, Spans, TraceTo
from pillion.main.config import Config, ConfigError

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

log = structlog.get_logger(__name__)

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def trace_to(config: Config) -> TraceTo | None:
    """None where tracing is off."""
    endpoint = config.tracing.endpoint or os.environ.get(ENDPOINT, "")
    return TraceTo(endpoint, config.tracing.sample) if endpoint else None


def tracer_provider(to: TraceTo | None, part: str) -> TracerProvider | None:
    """None where tracing is off. Call its `shutdown` at the end, so that nothing is lost. Raises `ConfigError`."""
    if to is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as error:
        raise ConfigError("tracing needs OpenTelemetry: install pillion[otel]") from error
    resource = Resource.create({"service.name": f"pillion-{part}", "service.version": __version__})
    made = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(to.sample)),
        resource=resource,
        shutdown_on_exit=False,
    )
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{to.endpoint.rstrip('/')}/v1/traces")))
    return made


@contextmanager
def spans_to(to: TraceTo) -> Iterator[Spans]:
    """An agent's. One that cannot tell them serves all the same."""
    try:
        provider = tracer_provider(to, "agent")
    except ConfigError as error:
        log.warning("no_traces", error=error.message)
        provider = None
    if provider is None:
        yield NoSpans()
        return
    try:
        yield Traced(provider)
    finally:
        provider.shutdown()


class Traced:
    """`Spans` that are told."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = provider.get_tracer("pillion")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, name: str, of: Carried, attributes: Mapping[str, str | int]) -> Span:
        from opentelemetry.trace import set_span_in_context

        span = self._tracer.start_span(name, self._propagator.extract(of), attributes=attributes)
        carried: dict[str, str] = {}
        self._propagator.inject(carried, set_span_in_context(span))
        return _Told(span, carried)

    def current(self) -> Carried:
        carried: dict[str, str] = {}
        self._propagator.inject(carried)
        return carried


class _Told:
    def __init__(self, span: trace.Span, carried: Carried) -> None:
        self._span, self.carried = span, carried

    def end(self, error: str | None = None) -> None:
        from opentelemetry.trace import StatusCode

        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()

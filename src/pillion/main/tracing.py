"""Where spans go: to a collector, by OTLP over HTTP, where one is configured. Needs `pillion[otel]`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pillion import __version__
from pillion.main.config import Config, ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def tracer_provider(config: Config, part: str) -> TracerProvider | None:
    """None where tracing is off. Call its `shutdown` at the end, so that nothing is lost. Raises `ConfigError`."""
    endpoint = config.tracing.endpoint or os.environ.get(ENDPOINT, "")
    if not endpoint:
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
        sampler=ParentBased(TraceIdRatioBased(config.tracing.sample)),
        resource=resource,
        shutdown_on_exit=False,
    )
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")))
    return made

"""The gateway's own metrics. Labels are bounded: kinds, statuses and reasons, never accounts or adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pillion.gateway.knowledge import Knowledge

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_BYTE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """One registry per gateway, so that several may live in one process."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "pillion_gateway_requests", "Requests answered", ["kind", "status"], registry=registry
        )
        self._in_flight = Gauge(
            "pillion_gateway_in_flight", "Requests being answered", ["kind"], registry=registry
        )
        self._retries = Counter(
            "pillion_gateway_retries", "Requests sent to another replica", ["reason"], registry=registry
        )
        self._failures = Counter(
            "pillion_gateway_upstream_failures", "Failures of replicas", ["reason"], registry=registry
        )
        self._first_byte = Histogram(
            "pillion_gateway_first_byte_seconds",
            "From a request's arrival to its answer's first byte",
            ["kind"],
            buckets=FIRST_BYTE_BUCKETS,
            registry=registry,
        )
        version = Gauge(
            "pillion_gateway_snapshot_version", "Version of the snapshot that is applied", registry=registry
        )
        version.set_function(lambda: knowledge.version)
        age = Gauge(
            "pillion_gateway_snapshot_age_seconds",
            "Since control last confirmed the snapshot",
            registry=registry,
        )
        age.set_function(lambda: knowledge.age)

    @contextmanager
    def answering(self, kind: str) -> Iterator[None]:
        gauge = self._in_flight.labels(kind)
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()

    def answered(self, kind: str, status: int) -> None:
        """`status` as the client got it; 499 where it left before."""
        self._requests.labels(kind, str(status)).inc()

    def first_byte(self, kind: str, seconds: float) -> None:
        self._first_byte.labels(kind).observe(seconds)

    def retried(self, reason: str) -> None:
        self._retries.labels(reason).inc()

    def failed(self, reason: str) -> None:
        self._failures.labels(reason).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)

"""Instances: launched, watched, stopped (SPEC §4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pillion.sdk import events, streams, waiting
from pillion.sdk.transport import Transport, segment
from pillion.sdk.types import Attachment, Event, Instance, read
from pillion.sdk.waiting import OnProgress

RUNNING_TIMEOUT_S = 1800.0


class Instances:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, stopped: bool = False, limit: int | None = None) -> Iterator[Instance]:
        """With `stopped` also those that no longer run."""
        return self._transport.pages(Instance, "/v1/instances", {"all": "true" if stopped else None}, limit)

    def get(self, instance: int) -> Instance:
        return read(Instance, self._transport.get(_path(instance)))

    def launch(
        self,
        model: str,
        *,
        lora: dict[str, Any] | None = None,
        regions: Sequence[str] | None = None,
        replicas: int | None = None,
        gpu_type: str | None = None,
        gpu_count: int | None = None,
        engine: str | None = None,
        **options: Any,
    ) -> Instance:
        """Begin to launch. `lora`: enabled, max_adapters, max_rank, max_active, on_demand.

        `options`: other fields of the request (`image`, `openai_compatible`, …).
        """
        wanted = {
            "model": model,
            "lora": lora,
            "regions": None if regions is None else [*regions],
            "replicas": replicas,
            "gpu_type": gpu_type,
            "gpu_count": gpu_count,
            "engine": engine,
            **options,
        }
        given = {name: value for name, value in wanted.items() if value is not None}
        return read(Instance, self._transport.send("POST", "/v1/instances", json=given))

    def stop(self, instance: int) -> Instance:
        """Begin to stop: requests in flight finish or are cut off, engines end. `wait_stopped` waits."""
        return read(Instance, self._transport.send("DELETE", _path(instance)))

    def logs(
        self, instance: int, *, follow: bool = False, tail: int | None = None, replica: str | None = None
    ) -> Iterator[str]:
        """The lines of its log, oldest first; with `follow` those to come as well, until the caller stops."""
        query = {"follow": "true" if follow else None, "tail": tail, "replica": replica}
        with self._transport.stream("GET", _path(instance, "logs"), params=query) as response:
            yield from streams.lines(response)

    def events(self, instance: int, *, follow: bool = False, limit: int | None = None) -> Iterator[Event]:
        """What happened to it; with `follow` also what happens from now on."""
        path = _path(instance, "events")
        yield from (
            events.followed(self._transport, path, {})
            if follow
            else self._transport.pages(Event, path, limit=limit)
        )

    def adapters(self, instance: int) -> Iterator[Attachment]:
        return self._transport.pages(Attachment, _path(instance, "adapters"))

    def wait_running(
        self,
        instance: int,
        *,
        timeout: float = RUNNING_TIMEOUT_S,
        on_progress: OnProgress | None = None,
    ) -> Instance:
        """The instance, once all its replicas answer.

        Raises `PillionFailedError` where it failed or was stopped, `PillionTimeoutError` in the end.
        """
        return waiting.poll(
            self._transport,
            lambda: self.get(instance),
            waiting.instance_running,
            what=f"Instance {instance}",
            timeout=timeout,
            progress=waiting.instance_progress,
            on_progress=on_progress,
        )

    def wait_stopped(
        self,
        instance: int,
        *,
        timeout: float = RUNNING_TIMEOUT_S,
        on_progress: OnProgress | None = None,
    ) -> Instance:
        """The instance, once its engines have ended. Raises `PillionTimeoutError` after `timeout` seconds."""
        return waiting.poll(
            self._transport,
            lambda: self.get(instance),
            lambda found: found.state in ("stopped", "failed"),
            what=f"Stopping instance {instance}",
            timeout=timeout,
            progress=waiting.instance_progress,
            on_progress=on_progress,
        )


def _path(instance: int, action: str | None = None) -> str:
    return f"/v1/instances/{segment(instance)}" + (f"/{action}" if action else "")

"""What can be launched and where: the catalogue, an account's own models, regions, GPU types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pillion.sdk.transport import Transport, segment
from pillion.sdk.types import GpuType, Model, Region, read


class Catalog:
    """The operator's base models."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None) -> Iterator[Model]:
        return self._transport.pages(Model, "/v1/catalog", limit=limit)


class RegisteredModels:
    """The account's own bases."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None) -> Iterator[Model]:
        return self._transport.pages(Model, "/v1/registered-models", limit=limit)

    def get(self, name: str) -> Model:
        return read(Model, self._transport.get(f"/v1/registered-models/{segment(name)}"))

    def register(
        self,
        name: str,
        source: str,
        *,
        kind: str | None = None,
        lora: bool | None = None,
        region: str | None = None,
    ) -> Model:
        """`source`: `hf:<repo>[@<revision>]`, or `path:<directory>` on a shared file system of `region`."""
        wanted = {"name": name, "source": source, "kind": kind, "lora": lora, "region": region}
        given = {field: value for field, value in wanted.items() if value is not None}
        return read(Model, self._transport.send("POST", "/v1/registered-models", json=given))

    def delete(self, name: str) -> dict[str, Any]:
        return self._transport.send("DELETE", f"/v1/registered-models/{segment(name)}") or {}


class Places:
    """Regions and GPU types."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def regions(self) -> Iterator[Region]:
        return self._transport.pages(Region, "/v1/regions")

    def gpu_types(self) -> Iterator[GpuType]:
        return self._transport.pages(GpuType, "/v1/gpu-types")

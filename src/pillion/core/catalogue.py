"""What the operator offers: regions, base models, GPU types, shared pools (SPEC §12). Read-only at run time."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Provision = Literal["local"]


class Region(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named place with compute. `gpus` maps a GPU type to how many there are."""

    name: str
    provisioner: Provision = "local"
    gpus: dict[str, int] = {}


class CatalogueModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A base model of the catalogue. `source`: `hf:<repo>[@revision]` or `path:<directory>`."""

    name: str
    source: str
    kind: str = "chat"
    engine: str = "vllm"
    lora: bool = True
    options: dict[str, Any] = {}


class Pool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An instance of the operator's that all accounts share. On demand unless said otherwise."""

    model: str
    replicas: int = 1
    max_adapters: int = 16
    on_demand: bool = True


class GpuType(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`rate_per_hour` is a decimal in the installation's currency; zero takes no hold (SPEC §6)."""

    name: str
    memory_gib: float = 0.0
    rate_per_hour: str = "0"


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An OpenAI-compatible provider requests may spill to. The key is read from the environment."""

    name: str
    base_url: str
    api_key_env: str


class Catalogue(msgspec.Struct, frozen=True):
    regions: tuple[Region, ...]
    models: tuple[CatalogueModel, ...]
    pools: tuple[Pool, ...] = ()
    gpu_types: tuple[GpuType, ...] = ()

    def model(self, name: str) -> CatalogueModel | None:
        return next((m for m in self.models if m.name == name), None)

    def region(self, name: str) -> Region | None:
        return next((r for r in self.regions if r.name == name), None)

    def names(self) -> frozenset[str]:
        return frozenset(m.name for m in self.models)

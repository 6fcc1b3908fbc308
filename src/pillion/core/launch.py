"""What was asked for at launch, resolved and kept: an instance's spec (SPEC §4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pillion.core.catalogue import CatalogueModel, GpuType, Region
from pillion.core.errors import InvalidRequestError
from pillion.core.replica import GroupSpec, LoraSpec, ModelSpec

MAX_ADAPTERS = 64
DEFAULT_SPREAD = 2


class InstanceSpec(msgspec.Struct, frozen=True):
    """`placement` maps a region to its number of replicas. The rest is fixed for the instance's life."""

    source: str
    kind: str
    engine: str
    placement: dict[str, int]
    lora: LoraSpec
    gpu_type: str = "cpu"
    gpu_count: int = 1
    engine_options: dict[str, Any] = {}
    openai_compatible: bool = True
    custom_api_path: str | None = None
    image: str | None = None

    @property
    def replicas(self) -> int:
        return sum(self.placement.values())

    def groups(self, instance: int, model: str, generation: int) -> list[GroupSpec]:
        return [
            GroupSpec(
                instance=instance,
                region=region,
                replicas=count,
                model=ModelSpec(model, self.source, self.kind),
                engine=self.engine,
                lora=self.lora,
                gpu_type=self.gpu_type,
                gpu_count=self.gpu_count,
                engine_options=self.engine_options,
                generation=generation,
            )
            for region, count in self.placement.items()
        ]


def check_lora(lora: LoraSpec, model: CatalogueModel, max_rank: int) -> LoraSpec:
    """`lora` within the caps of SPEC §4 and the operator's. Raises `InvalidRequestError`."""
    if not lora.enabled:
        return lora
    if not model.lora or model.kind == "embedding":
        raise InvalidRequestError(
            f"model {model.name!r} does not take LoRA; launch it without.", param="lora.enabled"
        )
    if not 1 <= lora.max_adapters <= MAX_ADAPTERS:
        raise InvalidRequestError(
            f"lora.max_adapters must be 1 to {MAX_ADAPTERS}.", param="lora.max_adapters"
        )
    if not 1 <= lora.max_rank <= max_rank:
        raise InvalidRequestError(f"lora.max_rank must be 1 to {max_rank}.", param="lora.max_rank")
    if lora.max_active is not None and not 1 <= lora.max_active <= lora.slots:
        raise InvalidRequestError(f"lora.max_active must be 1 to {lora.slots}.", param="lora.max_active")
    return lora


def place(
    regions: Sequence[Region],
    wanted: Sequence[str] | None,
    replicas: int | None,
    home: str | None = None,
) -> dict[str, int]:
    """Regions and replicas of a launch: what was asked for, else SPEC §4's default.

    That is 2 replicas in 2 regions where two exist. `home` pins it to a region, of which a model on a shared
    filesystem and some adapters are: then it is 1. Raises `InvalidRequestError`.
    """
    known = {region.name: region for region in regions}
    for name in [*(wanted or ()), *([home] if home else ())]:
        if name not in known:
            raise InvalidRequestError(
                f"region {name[:80]!r} does not exist; there are: {', '.join(known)}.", param="regions"
            )
        if home is not None and name != home:
            raise InvalidRequestError(
                f"this launch is bound to region {home!r}, not {name!r}.", param="regions"
            )
    if replicas is not None and replicas < 1:
        raise InvalidRequestError("replicas must be at least 1.", param="replicas")
    asked = list(dict.fromkeys(wanted or ()))
    if replicas is not None and replicas < len(asked):
        raise InvalidRequestError(
            f"{replicas} replicas cannot be in {len(asked)} regions; ask for at least one each.",
            param="replicas",
        )
    names = asked or ([home] if home else list(known))
    if replicas is None:
        replicas = len(asked) or min(DEFAULT_SPREAD, len(names))
    names = names[:replicas]
    share, rest = divmod(replicas, len(names))
    return {name: share + (index < rest) for index, name in enumerate(names)}


def default_gpu(regions: Mapping[str, Region], placement: Mapping[str, int], types: Sequence[GpuType]) -> str:
    """The cheapest GPU type that every chosen region has. Raises `InvalidRequestError` where there is none."""
    common = set.intersection(*(set(regions[name].gpus) for name in placement))
    if not common:
        raise InvalidRequestError(
            f"regions {', '.join(placement)} have no GPU type in common.", param="gpu_type"
        )
    rate = {t.name: float(t.rate_per_hour) for t in types}
    return min(sorted(common), key=lambda name: rate.get(name, 0.0))

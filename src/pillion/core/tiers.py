"""What an account of each tier may have (SPEC §3). The operator may set other caps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Tier = Literal["shared", "reserved", "dedicated"]


@dataclass(frozen=True)
class Caps:
    """`adapters`: how many. `adapter_bytes`: the size of each."""

    adapters: int
    adapter_bytes: int = 500_000_000


CAPS: Mapping[Tier, Caps] = {"shared": Caps(20), "reserved": Caps(200), "dedicated": Caps(200)}

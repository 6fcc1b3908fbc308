"""What an account of each tier may have (SPEC §3, §6). The operator may set other caps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Literal

Tier = Literal["shared", "reserved", "dedicated"]


@dataclass(frozen=True)
class Caps:
    """`adapters`: how many. `adapter_bytes`: the size of each. `uploads`: how many at once. `keys`, `members`, `instances`,
    `models`: how many; keys that are good, members and as many invites that wait, instances that run, models of its own.

    On shared pools: `requests` at once, those included that wait; `loads_per_minute` on demand; `weight`: its part where
    accounts wait for each other or share slots, beside the others' weights; `slots`: those of a replica that it has in any
    case for what it uses, and how many adapters it may pin on a pool.
    """

    adapters: int
    adapter_bytes: int = 500_000_000
    uploads: int = 8
    requests: int = 512
    loads_per_minute: int = 600
    weight: int = 2
    slots: int = 4
    keys: int = 1000
    members: int = 200
    instances: int = 100
    models: int = 100


CAPS: Mapping[Tier, Caps] = {
    "shared": Caps(
        20,
        uploads=4,
        requests=128,
        loads_per_minute=60,
        weight=1,
        slots=1,
        keys=100,
        members=20,
        instances=20,
        models=20,
    ),
    "reserved": Caps(200),
    "dedicated": Caps(200),
}


UNKNOWN = 256  # taken for what an engine takes that does not say


@dataclass(frozen=True)
class Turns:
    """`at_once`: requests that a replica is given at a time, 0: as many as its engine takes; `share` of them at most one
    account's. `waiting`: how many wait for a replica at most, each for `wait_s`. So many `workers` share these.
    """

    at_once: int = 0
    share: float = 0.75
    waiting: int = 1024
    wait_s: float = 60.0
    workers: int = 1

    def of(self, engine_takes: int | None) -> tuple[int, int]:
        """Turns at a replica, and those that one account may have."""
        turns = ceil((self.at_once or engine_takes or UNKNOWN) / self.workers)
        return turns, max(1, ceil(turns * self.share))

    @property
    def most_waiting(self) -> int:
        return ceil(self.waiting / self.workers)

"""From what agents say to how long each replica was ready. What nobody saw is not charged; what was seen is, once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from pillion.core.money import Run

GAP_MS = 15_000  # a little longer than from one look that is put down to the next


@dataclass(frozen=True)
class Sighting:
    """A replica of an account's own instance that is wanted, as its agent describes it: ready, or not, since when."""

    account: str
    instance: int
    replica: str
    region: str
    gpu_type: str
    gpu_count: int
    ready: bool
    since_ms: int


@dataclass(frozen=True)
class Begin:
    sighting: Sighting
    began_ms: int


@dataclass
class Recording:
    """Runs by id, to be extended or ended at an instant, and new ones that reach to now."""

    extend: dict[int, int] = field(default_factory=dict)
    end: dict[int, int] = field(default_factory=dict)
    begin: list[Begin] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.extend or self.end or self.begin)


def record(
    runs: Iterable[Run],
    seen: Mapping[str, Sighting],
    present: Collection[str],
    ended: Mapping[str, int],
    now_ms: int,
    billed: bool,
) -> Recording:
    """`runs`: the open ones. `seen`: who was heard, by replica. `present`: all replicas that may still be heard.

    `ended`: until when earlier runs of a replica reach. A replica that is not heard keeps its run: once it says that it
    was ready all along, the time between is known.
    """
    found = Recording()
    running = {run.replica: run for run in runs}
    for replica, run in running.items():
        sighting = seen.get(replica)
        if sighting is not None:
            _go_on(found, run, sighting, now_ms, billed)
        elif replica not in present:
            found.end[run.id] = run.seen_ms
    for replica, sighting in seen.items():
        if sighting.ready and replica not in running:
            began = max(min(sighting.since_ms, now_ms), ended.get(replica, 0))
            found.begin.append(Begin(sighting, began))
    return found


def _go_on(found: Recording, run: Run, sighting: Sighting, now_ms: int, billed: bool) -> None:
    now_ms = max(now_ms, run.seen_ms)  # a clock that was set back takes nothing back
    since = min(sighting.since_ms, now_ms)
    if not sighting.ready:
        known = run.seen_ms < since <= run.seen_ms + GAP_MS
        found.end[run.id] = since if known else run.seen_ms
    elif since > run.seen_ms:  # it was away in between, nobody knows how long
        found.end[run.id] = run.seen_ms
        found.begin.append(Begin(sighting, since))
    elif run.billed != billed:
        found.end[run.id] = now_ms
        found.begin.append(Begin(sighting, now_ms))
    else:
        found.extend[run.id] = now_ms

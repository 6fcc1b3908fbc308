"""Loads on demand as control has them: which adapters may be loaded where, and which may not stay (SPEC §4). Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from pillion.control.plan import HOLDING, name_of, spec_of
from pillion.core.permits import Permit, sign
from pillion.core.replica import OnDemand, Replica, Residency
from pillion.core.tiers import CAPS, Caps, Tier
from pillion.store.rows import Attachment, Instance, RoutedAdapter
from pillion.store.transaction import Tx

SETTING = "permit-key"
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_KEY_LENGTH = 50

Takers = frozenset[tuple[str | None, str]]


class Permits:
    """Signs permits. `key` is control's and its agents' alone. `caps`: what accounts may have, by tier."""

    def __init__(self, key: bytes, caps: Mapping[Tier, Caps] = CAPS) -> None:
        self.key, self._caps = key, caps

    def of(
        self,
        adapters: Iterable[tuple[RoutedAdapter, float | None]],
        takers: Takers,
        tiers: Mapping[str, Tier],
    ) -> Mapping[int, bytes]:
        """By row id, for those that may be loaded anywhere; each adapter with when it ends. `tiers` as `SnapshotRows`'."""
        permits = (
            (found.adapter.row_id, _permit(found, end, takers, self._of(found.adapter.account_id, tiers)))
            for found, end in adapters
        )
        return {row_id: sign(permit, self.key) for row_id, permit in permits if permit is not None}

    def _of(self, account: str, tiers: Mapping[str, Tier]) -> Caps:
        return self._caps[tiers.get(account, "shared")]


async def key(tx: Tx, choice: Callable[[str], str]) -> bytes:
    """The one all controls sign with, made at the first start."""
    return await tx.settings.get_or_create(
        SETTING, "".join(choice(_ALPHABET) for _ in range(_KEY_LENGTH)).encode()
    )


def takers(instances: Iterable[Instance]) -> Takers:
    """Account (None: all) and base of what loads on demand."""
    return frozenset(
        (row.account_id, row.model) for row in instances if row.wanted == "running" and loads(row)
    )


def loads(instance: Instance) -> bool:
    lora = spec_of(instance).lora
    return lora.enabled and lora.on_demand


def terms(instance: Instance, key: bytes) -> OnDemand | None:
    """What its replicas are told."""
    return OnDemand(key, instance.account_id) if loads(instance) else None


def dropped(
    instance: Instance,
    replica: Replica,
    held: Iterable[Residency],
    granted: Collection[str],
    staying: Mapping[str, RoutedAdapter],
) -> tuple[str, ...]:
    """What a replica holds beside its grant and may hold no longer: engine names. `staying`: adapters by public id."""
    if not loads(instance):
        return ()
    names = (row.engine_name for row in held if row.state in HOLDING and row.engine_name not in granted)

    def stays(name: str) -> bool:
        found = staying.get(name.partition("@")[0])
        return (
            found is not None
            and name_of(found) == name
            and found.adapter.base_model == instance.model
            and instance.account_id in (None, found.adapter.account_id)
            and found.adapter.region in (None, replica.region)
        )

    return tuple(sorted(name for name in names if not stays(name)))


def ends(row: RoutedAdapter, attachments: Iterable[Attachment]) -> float | None:
    """When it is no longer served, or has been since: as long as it is loaded anywhere for good, never."""
    expiries = [a.expires_at for a in attachments]
    if not expiries:
        return row.adapter.ended_at
    return None if None in expiries else max(e for e in expiries if e is not None)


def staying(
    adapters: Iterable[RoutedAdapter], attachments: Iterable[Attachment], now: float
) -> dict[str, RoutedAdapter]:
    """By public id, those whose time to live is not over at `now`."""
    held: dict[int, list[Attachment]] = {}
    for attachment in attachments:
        if attachment.state != "detaching":
            held.setdefault(attachment.adapter_row_id, []).append(attachment)
    found = ((adapter, ends(adapter, held.get(adapter.adapter.row_id, ()))) for adapter in adapters)
    return {adapter.adapter.id: adapter for adapter, end in found if end is None or end > now}


def _permit(found: RoutedAdapter, expires_at: float | None, takers: Takers, caps: Caps) -> Permit | None:
    adapter, live = found.adapter, found.live
    base = adapter.base_model
    if live is None or not ((None, base) in takers or (adapter.account_id, base) in takers):
        return None
    return Permit(
        adapter.account_id,
        base,
        adapter.region,
        adapter.id,
        live.digest,
        live.rank,
        live.size_bytes,
        expires_at,
        caps.weight,
        caps.slots,
    )

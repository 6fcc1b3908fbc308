"""From rows and facts to the content of a routing snapshot. Pure but for what it worked out before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pillion.control.on_demand import Permits, Takers, ends, loads, takers
from pillion.control.plan import name_of, spec_of
from pillion.core import snapshot as wire
from pillion.core.catalogue import Catalogue
from pillion.core.names import engine_name
from pillion.core.replica import Replica, ReplicaStatus
from pillion.store.rows import ApiKey, Attachment, Instance, RoutedAdapter, SnapshotRows

Content = tuple[
    dict[str, wire.Key], tuple[wire.Model, ...], tuple[wire.Adapter, ...], tuple[wire.Instance, ...]
]


Own = tuple[dict[str, wire.Key], list[wire.Model], list[wire.Adapter]]


class Routed:
    """Accounts' routes as worked out before: those whose rows are the same objects are not worked out again."""

    def __init__(self) -> None:
        self._known: dict[str | None, tuple[SnapshotRows, Takers, Own]] = {}

    def content(
        self,
        parts: Mapping[str | None, SnapshotRows],
        replicas: Iterable[Replica],
        facts: Mapping[str, ReplicaStatus],
        catalogue: Catalogue,
        permits: Permits,
    ) -> Content:
        """`parts`: by account, the operator's under None. Keys by lookup id, models, adapters, and instances with the
        replicas that were heard.
        """
        pools = takers(parts[None].instances) if None in parts else frozenset()
        known = {}
        for account, part in parts.items():
            before = self._known.get(account)
            if before is None or before[0] is not part or before[1] != pools:
                before = part, pools, _own(part, permits, pools | takers(part.instances))
            known[account] = before
        self._known = known
        keys: dict[str, wire.Key] = {}
        models = [wire.Model(m.name, None, m.kind, m.lora) for m in catalogue.models]
        adapters: list[wire.Adapter] = []
        for _, _, own in known.values():
            keys.update(own[0])
            models += own[1]
            adapters += own[2]
        return keys, tuple(models), tuple(adapters), _instances(parts.values(), replicas, facts)


def _own(rows: SnapshotRows, permits: Permits, takers: Takers) -> Own:
    held: dict[int, list[Attachment]] = {}
    for attachment in rows.attachments:
        if attachment.state == "detaching":
            continue
        # What failed or was evicted everywhere is not "being loaded".
        if attachment.state not in ("failed", "registered") or attachment.ready:
            held.setdefault(attachment.adapter_row_id, []).append(attachment)
    over = {row.adapter.row_id: ends(row, held.get(row.adapter.row_id, ())) for row in rows.adapters}
    signed = permits.of(((row, over[row.adapter.row_id]) for row in rows.adapters), takers, rows.tiers)
    return (
        {row.lookup: _key(row, rows) for row in rows.keys},
        [wire.Model(m.name, m.account_id, m.kind, m.lora) for m in rows.models],
        [
            _adapter(
                row,
                held.get(row.adapter.row_id, ()),
                over[row.adapter.row_id],
                signed.get(row.adapter.row_id),
            )
            for row in rows.adapters
        ],
    )


def _instances(
    parts: Iterable[SnapshotRows], replicas: Iterable[Replica], facts: Mapping[str, ReplicaStatus]
) -> tuple[wire.Instance, ...]:
    by_instance: dict[int, list[Replica]] = {}
    for replica in replicas:
        by_instance.setdefault(replica.instance, []).append(replica)
    wanted = (row for part in parts for row in part.instances if row.wanted == "running")
    return tuple(
        _instance(row, by_instance.get(row.id, ()), facts) for row in sorted(wanted, key=lambda row: row.id)
    )


def _key(row: ApiKey, rows: SnapshotRows) -> wire.Key:
    return wire.Key(
        row.id,
        row.account_id,
        row.digest,
        tuple(row.scopes),
        row.expires_at,
        row.requests_per_minute,
        row.tokens_per_minute,
        tuple(row.allow or ()),
        row.account_id in rows.suspended,
        tier=rows.tiers.get(row.account_id, "shared"),
    )


def _adapter(
    row: RoutedAdapter, attachments: Iterable[Attachment], expires_at: float | None, permit: bytes | None
) -> wire.Adapter:
    adapter = row.adapter
    return wire.Adapter(
        id=adapter.id,
        row_id=adapter.row_id,
        account=adapter.account_id,
        name=adapter.name,
        labels=row.labels,
        base=adapter.base_model,
        version=row.live.version if row.live else None,
        engine_name=name_of(row),
        instances=tuple(sorted(a.instance_id for a in attachments)),
        region=adapter.region,
        expires_at=expires_at,
        created_at=adapter.created_at,
        rank=row.live.rank if row.live else 0,
        permit=permit,
        canary=_canary(row),
    )


def _canary(row: RoutedAdapter) -> wire.Canary | None:
    if row.canary is None:
        return None
    name = engine_name(row.adapter.id, row.canary.digest)
    return wire.Canary(row.canary.version, name, row.adapter.canary_share or 0.0)


def _instance(
    row: Instance, replicas: Iterable[Replica], facts: Mapping[str, ReplicaStatus]
) -> wire.Instance:
    spec, on_demand = spec_of(row), loads(row)
    heard = tuple(
        _replica(replica, facts[replica.id], on_demand)
        for replica in sorted(replicas, key=lambda r: r.id)
        if replica.id in facts
    )
    return wire.Instance(
        id=row.id,
        account=row.account_id,
        model=row.model,
        served_model=row.model,
        openai_compatible=spec.openai_compatible,
        custom_api_path=spec.custom_api_path,
        replicas=heard,
        created_at=row.created_at,
        on_demand=on_demand,
        max_rank=spec.lora.max_rank if on_demand else 0,
    )


def _replica(replica: Replica, status: ReplicaStatus, on_demand: bool) -> wire.Replica:
    """Resident is only what the engine confirmed and what was proved effective."""
    return wire.Replica(
        id=replica.id,
        region=replica.region,
        url=status.engine_url or "",
        infer_key=replica.infer_key,
        ready=status.ready and status.engine_url is not None,
        resident=frozenset(a.engine_name for a in status.adapters if a.state == "loaded"),
        agent_url=replica.agent_url if on_demand else None,
        load_key=replica.load_key if on_demand else "",
    )

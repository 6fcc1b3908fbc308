"""From rows and facts to the content of a routing snapshot. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from pillion.control.plan import name_of, spec_of
from pillion.core import snapshot as wire
from pillion.core.catalogue import Catalogue
from pillion.core.names import engine_name
from pillion.core.replica import Replica, ReplicaStatus
from pillion.store.rows import ApiKey, Attachment, Instance, RoutedAdapter, SnapshotRows

Content = tuple[
    dict[str, wire.Key], tuple[wire.Model, ...], tuple[wire.Adapter, ...], tuple[wire.Instance, ...]
]


def routes_of(
    rows: SnapshotRows, replicas: Iterable[Replica], facts: Mapping[str, ReplicaStatus], catalogue: Catalogue
) -> Content:
    """Keys by lookup id, models, adapters and instances with the replicas that were heard."""
    keys = {row.lookup: _key(row, rows.suspended) for row in rows.keys}
    models = [wire.Model(m.name, None, m.kind, m.lora) for m in catalogue.models]
    models += [wire.Model(m.name, m.account_id, m.kind, m.lora) for m in rows.models]
    held: dict[int, list[Attachment]] = {}
    for attachment in rows.attachments:
        if attachment.state == "detaching":
            continue
        if attachment.state != "failed" or attachment.ready:  # what failed everywhere is not "being loaded"
            held.setdefault(attachment.adapter_row_id, []).append(attachment)
    by_instance: dict[int, list[Replica]] = {}
    for replica in replicas:
        by_instance.setdefault(replica.instance, []).append(replica)
    return (
        keys,
        tuple(models),
        tuple(_adapter(row, held.get(row.adapter.row_id, ())) for row in rows.adapters),
        tuple(
            _instance(row, by_instance.get(row.id, ()), facts)
            for row in rows.instances
            if row.wanted == "running"
        ),
    )


def _key(row: ApiKey, suspended: Collection[str]) -> wire.Key:
    return wire.Key(
        row.id,
        row.account_id,
        row.digest,
        tuple(row.scopes),
        row.expires_at,
        row.requests_per_minute,
        row.tokens_per_minute,
        tuple(row.allow or ()),
        row.account_id in suspended,
    )


def _adapter(row: RoutedAdapter, attachments: Iterable[Attachment]) -> wire.Adapter:
    adapter = row.adapter
    expiries = [a.expires_at for a in attachments]
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
        expires_at=max((e for e in expiries if e is not None), default=None)
        if None not in expiries
        else None,
        created_at=adapter.created_at,
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
    spec = spec_of(row)
    heard = tuple(
        _replica(replica, facts[replica.id])
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
    )


def _replica(replica: Replica, status: ReplicaStatus) -> wire.Replica:
    """Resident is only what the engine confirmed and what was proved effective."""
    return wire.Replica(
        id=replica.id,
        region=replica.region,
        url=status.engine_url or "",
        infer_key=replica.infer_key,
        ready=status.ready and status.engine_url is not None,
        resident=frozenset(a.engine_name for a in status.adapters if a.state == "loaded"),
    )

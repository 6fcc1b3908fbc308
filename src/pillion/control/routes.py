"""From rows and facts to the content of a routing snapshot. Pure but for what it worked out before."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping

from pillion.control.mirror import Touched
from pillion.control.on_demand import Permits, Takers, ends, loads, takers
from pillion.control.plan import name_of, spec_of
from pillion.core import snapshot as wire
from pillion.core.catalogue import Catalogue
from pillion.core.names import engine_name
from pillion.core.replica import Replica, ReplicaStatus
from pillion.core.snapshot import Content, Owned
from pillion.store.rows import ApiKey, Attachment, Instance, RoutedAdapter, SnapshotRows


class Routed:
    """Routes as worked out before: accounts whose rows are the same objects, and instances whose replicas say the same,
    are not worked out again.
    """

    def __init__(self) -> None:
        self._parts: Mapping[str | None, SnapshotRows] = {}
        self._pools: Takers = frozenset()
        self._owned: Mapping[str | None, Owned] = {}
        self._rows: dict[int, Instance] = {}
        self._replicas: dict[str, tuple[Replica, ReplicaStatus, bool, wire.Replica]] = {}
        self._instances: dict[int, tuple[Instance, wire.Instance]] = {}

    def content(
        self,
        parts: Mapping[str | None, SnapshotRows],
        replicas: Iterable[Replica],
        facts: Mapping[str, ReplicaStatus],
        catalogue: Catalogue,
        permits: Permits,
        last: Touched | None = None,
    ) -> Content:
        """`parts`: by account, the operator's under None; `last`: how they came to be. Instances with the replicas that were
        heard.
        """
        pools = takers(parts[None].instances) if None in parts else frozenset()
        touched = self._touched(parts, pools, last)
        before, owned = self._owned, dict(self._owned)
        for account in touched:
            for row in self._parts[account].instances if account in self._parts else ():
                self._rows.pop(row.id, None)
            if (part := parts.get(account)) is None:
                owned.pop(account, None)
                continue
            owned[account] = _own(part, permits, pools | takers(part.instances))
            self._rows |= {row.id: row for row in part.instances if row.wanted == "running"}
        self._parts, self._pools, self._owned = parts, pools, owned
        return Content(
            owned,
            tuple(wire.Model(m.name, None, m.kind, m.lora) for m in catalogue.models),
            self._running(replicas, facts),
            (before, touched),
        )

    def _touched(
        self, parts: Mapping[str | None, SnapshotRows], pools: Takers, last: Touched | None
    ) -> Collection[str | None]:
        """Accounts whose routes are to be worked out."""
        if pools != self._pools:
            return parts.keys() | self._parts.keys()
        if parts is self._parts:
            return ()
        if last is not None and last.before is self._parts:
            return last.accounts
        known = self._parts
        other = {account for account, part in parts.items() if known.get(account) is not part}
        return other | (known.keys() - parts.keys())

    def _running(
        self, replicas: Iterable[Replica], facts: Mapping[str, ReplicaStatus]
    ) -> tuple[wire.Instance, ...]:
        by_instance: dict[int, list[Replica]] = {}
        for replica in sorted(replicas, key=lambda replica: replica.id):
            if replica.id in facts:
                by_instance.setdefault(replica.instance, []).append(replica)
        before, self._replicas = self._replicas, {}
        found = {}
        for _, row in sorted(self._rows.items()):
            known = self._instances.get(row.id)
            on_demand = loads(row) if known is None or known[0] is not row else known[1].on_demand
            heard = tuple(self._heard(r, facts[r.id], on_demand, before) for r in by_instance.get(row.id, ()))
            if known is None or known[0] is not row or not _same(known[1].replicas, heard):
                known = row, _instance(row, heard, on_demand)
            found[row.id] = known
        self._instances = found
        return tuple(instance for _, instance in found.values())

    def _heard(
        self,
        replica: Replica,
        status: ReplicaStatus,
        on_demand: bool,
        before: Mapping[str, tuple[Replica, ReplicaStatus, bool, wire.Replica]],
    ) -> wire.Replica:
        known = before.get(replica.id)
        if known is None or known[1] is not status or known[2] != on_demand or known[0] != replica:
            known = replica, status, on_demand, _replica(replica, status, on_demand)
        self._replicas[replica.id] = known
        return known[3]


def _same(one: tuple[wire.Replica, ...], other: tuple[wire.Replica, ...]) -> bool:
    """The same objects."""
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _own(rows: SnapshotRows, permits: Permits, takers: Takers) -> Owned:
    held: dict[int, list[Attachment]] = {}
    staying: dict[int, list[Attachment]] = {}
    for attachment in rows.attachments:
        if attachment.state == "detaching":
            continue
        staying.setdefault(attachment.adapter_row_id, []).append(attachment)
        # What failed or was evicted everywhere is not "being loaded". Its time ends all the same.
        if attachment.state not in ("failed", "registered") or attachment.ready:
            held.setdefault(attachment.adapter_row_id, []).append(attachment)
    over = {row.adapter.row_id: ends(row, staying.get(row.adapter.row_id, ())) for row in rows.adapters}
    signed = permits.of(((row, over[row.adapter.row_id]) for row in rows.adapters), takers, rows.tiers)
    return Owned(
        {row.lookup: _key(row, rows) for row in rows.keys},
        tuple(wire.Model(m.name, m.account_id, m.kind, m.lora) for m in rows.models),
        tuple(
            _adapter(
                row,
                held.get(row.adapter.row_id, ()),
                over[row.adapter.row_id],
                signed.get(row.adapter.row_id),
            )
            for row in rows.adapters
        ),
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
        row.spend_limit,
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
        refused=_refused(row),
    )


def _refused(row: RoutedAdapter) -> tuple[str, float] | None:
    name, until = row.adapter.refused_name, row.adapter.refused_until
    return None if name is None or until is None else (name, until)


def _canary(row: RoutedAdapter) -> wire.Canary | None:
    if row.canary is None:
        return None
    name = engine_name(row.adapter.id, row.canary.digest)
    return wire.Canary(row.canary.version, name, row.adapter.canary_share or 0.0)


def _instance(row: Instance, heard: tuple[wire.Replica, ...], on_demand: bool) -> wire.Instance:
    spec = spec_of(row)
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
        max_requests=status.engine.get("max_requests"),
    )

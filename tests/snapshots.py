"""Snapshots by account, as control has them."""

from __future__ import annotations

from pillion.core import snapshot as wire


def content_of(snapshot: wire.Snapshot) -> wire.Content:
    keys: dict[str | None, dict[str, wire.Key]] = {}
    for lookup, key in snapshot.keys.items():
        keys.setdefault(key.account, {})[lookup] = key
    accounts = {*keys, *(a.account for a in snapshot.adapters), *(m.account for m in snapshot.models)} - {
        None
    }
    return wire.Content(
        {
            account: wire.Owned(
                keys.get(account, {}),
                tuple(model for model in snapshot.models if model.account == account),
                tuple(adapter for adapter in snapshot.adapters if adapter.account == account),
            )
            for account in accounts
        },
        tuple(model for model in snapshot.models if model.account is None),
        snapshot.instances,
    )


def difference(before: wire.Snapshot, after: wire.Snapshot) -> wire.Delta:
    """What makes the one the other."""
    return wire.difference(
        content_of(before), content_of(after), before.version, after.version, after.made_at
    )

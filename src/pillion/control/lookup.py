"""Finding what a caller names: adapters by ref, instances by id; and showing them."""

from __future__ import annotations

from collections.abc import Sequence

from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.views import AdapterView, AttachmentView, CanaryView, ErrorView
from pillion.core.errors import AdapterNotDeployedError, InvalidRequestError, NotFoundError, PillionError
from pillion.core.names import Ref, parse_ref
from pillion.store.rows import Adapter, AdapterVersion, Attachment, Instance
from pillion.store.transaction import Tx


async def adapter(tx: Tx, who: Principal, ref: str) -> Adapter:
    """The caller's adapter. What is unknown and what is another's get the same answer."""
    parsed = parse_ref(ref)
    row = await tx.adapters.by_ref(who.account, parsed) if parsed else None
    if row is None:
        raise NotFoundError(f"you have no adapter {ref[:80]!r}; GET /v1/adapters lists yours.")
    return row


async def instance(tx: Tx, who: Principal, id: int, *, pool: bool = True) -> Instance:
    row = await tx.instances.get(who.account, id, pool=pool) if 0 < id < 2**53 else None
    if row is None:
        raise NotFoundError(f"you have no instance {str(id)[:20]}; GET /v1/instances lists yours.")
    return row


async def live_version(tx: Tx, row: Adapter) -> AdapterVersion | None:
    if row.live_version is None:
        return None
    return await tx.versions.get(row.account_id, row.row_id, row.live_version)


async def largest_version(tx: Tx, row: Adapter) -> AdapterVersion | None:
    """The one of highest rank of those that replicas hold or are to hold."""
    numbers = {row.live_version, row.wanted_version, row.canary_version} - {None}
    found = [
        await tx.versions.get(row.account_id, row.row_id, number) for number in sorted(filter(None, numbers))
    ]
    return max((version for version in found if version), key=lambda version: version.rank, default=None)


async def without_bytes(tx: Tx, row: Adapter) -> PillionError:
    """For an adapter of which no version was found: it has none yet, or was deleted since it was read."""
    if await tx.adapters.by_ref(row.account_id, Ref(row_id=row.row_id)) is None:
        return NotFoundError(f"adapter {row.name!r} was deleted.")
    return AdapterNotDeployedError(
        f"adapter {row.name!r} has no bytes yet (state {row.state}); wait for its import."
    )


async def adapter_view(control: Control, tx: Tx, row: Adapter) -> AdapterView:
    version = await live_version(tx, row)
    failed = await tx.versions.failures(row.account_id, row.row_id)
    attachments = await tx.attachments.list(row.account_id, adapter_row_id=row.row_id)
    return AdapterView(
        id=row.id,
        row_id=row.row_id,
        name=row.name,
        label=row.label,
        aliases=aliases(row),
        base_model=row.base_model,
        region=row.region,
        state=row.state,
        version=row.live_version,
        digest=version.digest if version else None,
        rank=version.rank if version else None,
        alpha=version.alpha if version else None,
        target_modules=list(version.target_modules) if version else [],
        size_bytes=version.size_bytes if version else None,
        attachments=[attachment_view(a, row) for a in attachments],
        warnings=[
            *(version.warnings if version else ()),
            *(_not_live(f) for f in failed if _matters(f, row)),
        ],
        created_at=row.created_at,
        wanted_version=row.wanted_version,
        previous_version=row.previous_version,
        canary=_canary(row),
    )


def _canary(row: Adapter) -> CanaryView | None:
    return CanaryView(row.canary_version, row.canary_share or 0.0) if row.canary_version else None


def _matters(failed: AdapterVersion, row: Adapter) -> bool:
    """Whether what failed is newer than the live version, or was to take its place again."""
    return failed.version > (row.live_version or 0) or failed.version == row.previous_version


def _not_live(failed: AdapterVersion) -> str:
    return f"version {failed.version} did not go live: {failed.error_message} ({failed.error_code})"


def aliases(row: Adapter) -> list[str]:
    """What to put in `model`: the label's form, then the base's."""
    return [f"{row.label}:{row.row_id}", f"{row.base_model}:{row.name}"]


def attachment_view(row: Attachment, adapter: Adapter, behind: Sequence[str] = ()) -> AttachmentView:
    error = ErrorView(row.error_code, row.error_message or "") if row.error_code else None
    return AttachmentView(
        adapter_id=adapter.id,
        adapter_row_id=adapter.row_id,
        adapter=adapter.name,
        instance_id=row.instance_id,
        attached=row.hold == "attached",
        pinned=row.pinned,
        state=row.state,
        ready=row.ready,
        wanted=row.wanted,
        created_at=row.created_at,
        expires_at=row.expires_at,
        session_key=row.session_key,
        error=error,
        aliases=aliases(adapter),
        unacknowledged=list(behind),
    )


def page_after(after: str | None) -> int:
    """The row a page comes after. Raises `InvalidRequestError` for what is no cursor: begun anew, a list would not end."""
    if not after:
        return 0
    if after.isascii() and after.isdigit() and len(after) < 17:
        return int(after)
    raise InvalidRequestError(f"{after!r} is no cursor; pass the `next` of the page before.", param="after")

"""Adapters and their labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from pillion.core.errors import AdapterInUseError, NameTakenError
from pillion.core.names import Ref
from pillion.store.accounts import Accounts
from pillion.store.names import model_in_use
from pillion.store.rows import Adapter, AdapterState
from pillion.store.session import Session, owned
from pillion.store.tables import adapter_labels, adapter_versions, adapters


class Adapters:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def create(
        self,
        account: str,
        id: str,
        *,
        name: str,
        base_model: str,
        now: float,
        label: str | None = None,
        region: str | None = None,
        state: AdapterState = "registered",
    ) -> Adapter:
        """`label` is the name unless given. Raises NameTakenError, also where a model of yours has it."""
        label = label or name
        await Accounts(self._session).lock(account)
        await self._refuse_model_name(account, name, "name")
        await self._refuse_model_name(account, label, "label")
        fields = {
            "id": id,
            "account_id": account,
            "name": name,
            "label": label,
            "base_model": base_model,
            "region": region,
            "state": state,
            "created_at": now,
        }
        made = await self._session.add(adapters, fields, Adapter, unless=("account_id", "name"))
        if made is None:
            raise NameTakenError(
                f"You have an adapter named {name!r} already; choose another name.", param="name"
            )
        await self._add_label(made, label, now)
        return made

    async def by_ref(self, account: str, ref: Ref) -> Adapter | None:
        """The account's adapter of that id, row id or name."""
        if ref.id is not None:
            same = adapters.c.id == ref.id
        elif ref.row_id is not None:
            same = adapters.c.row_id == ref.row_id
        else:
            same = adapters.c.name == ref.name
        return await self._session.one(sa.select(adapters).where(owned(adapters, account), same), Adapter)

    async def among(
        self, account: str, *, row_ids: Collection[int] = (), ids: Collection[str] = ()
    ) -> Sequence[Adapter]:
        """The account's of these row ids or public ids, by row id."""
        same = adapters.c.row_id.in_(row_ids) | adapters.c.id.in_(ids)
        statement = sa.select(adapters).where(owned(adapters, account), same)
        return await self._session.all(statement.order_by(adapters.c.row_id), Adapter)

    async def list(
        self, account: str, *, after: int = 0, limit: int = 100, base: str | None = None, q: str | None = None
    ) -> list[Adapter]:
        """By row id. `q` is a part of the name or of the present label."""
        statement = sa.select(adapters).where(owned(adapters, account), adapters.c.row_id > after)
        if base is not None:
            statement = statement.where(adapters.c.base_model == base)
        if q:
            part = q.lower()
            statement = statement.where(
                adapters.c.name.contains(part, autoescape=True)
                | adapters.c.label.contains(part, autoescape=True)
            )
        return await self._session.all(statement.order_by(adapters.c.row_id).limit(limit), Adapter)

    async def rename(self, account: str, row_id: int, label: str, now: float) -> Adapter | None:
        """The former label keeps resolving. Raises NameTakenError where a registered model has the label."""
        await Accounts(self._session).lock(account)
        await self._refuse_model_name(account, label, "label")
        changed = await self._update(account, row_id, label=label)
        if changed is not None:
            await self._add_label(changed, label, now)
        return changed

    async def set_live(self, account: str, row_id: int, version: int) -> Adapter | None:
        """In one step: what was live is the previous one, this is no canary any more, nothing else is to go live.

        None where there is no such adapter or no such version of it.
        """
        found = sa.select(adapter_versions.c.version).where(
            owned(adapter_versions, account),
            adapter_versions.c.adapter_row_id == row_id,
            adapter_versions.c.version == version,
        )
        if await self._session.value(found) is None:
            return None
        live, canary = adapters.c.live_version, adapters.c.canary_version
        return await self._update(
            account,
            row_id,
            live_version=version,
            previous_version=sa.case((live == version, adapters.c.previous_version), else_=live),
            wanted_version=None,
            wanted_at=None,
            canary_version=sa.case((canary == version, None), else_=canary),
            canary_share=sa.case((canary == version, None), else_=adapters.c.canary_share),
        )

    async def lock(self, account: str, row_id: int) -> Adapter | None:
        """As it is, and as it stays until the transaction ends but for what is done in it."""
        statement = sa.select(adapters).where(owned(adapters, account), adapters.c.row_id == row_id)
        return await self._session.one(statement.with_for_update(), Adapter)

    async def want(self, account: str, row_id: int, version: int | None, now: float) -> Adapter | None:
        """`version` is to go live, at the end of the line; None: what is live stays."""
        at = None if version is None else now
        return await self._update(account, row_id, wanted_version=version, wanted_at=at)

    async def set_canary(
        self, account: str, row_id: int, version: int | None, share: float | None
    ) -> Adapter | None:
        return await self._update(account, row_id, canary_version=version, canary_share=share)

    async def ended(self, account: str, row_id: int, at: float | None) -> Adapter | None:
        """Its time to live was over at `at`, or will be; None: it is loaded anew."""
        return await self._update(account, row_id, ended_at=at)

    async def refuse(self, account: str, id: str, engine_name: str, until: float) -> None:
        """This version of it is in quarantine."""
        statement = sa.update(adapters).where(owned(adapters, account), adapters.c.id == id)
        await self._session.run(statement.values(refused_name=engine_name, refused_until=until))

    async def set_state(self, account: str, row_id: int, state: AdapterState) -> Adapter | None:
        return await self._update(account, row_id, state=state)

    async def delete(self, account: str, row_id: int) -> bool:
        """With its labels and versions. Raises AdapterInUseError while attachments exist."""
        statement = sa.delete(adapters).where(owned(adapters, account), adapters.c.row_id == row_id)
        try:
            async with self._session.savepoint():
                return await self._session.changed(statement)
        except IntegrityError as error:
            raise AdapterInUseError(
                f"Adapter {row_id} is attached or loaded on an instance; detach it first or use force=true."
            ) from error

    async def labels_of(self, account: str, row_id: int) -> Sequence[str]:
        """The present one first, then former ones, the newest first."""
        former = adapter_labels.c.label != adapters.c.label
        statement = (
            sa.select(adapter_labels.c.label)
            .join(adapters, adapters.c.row_id == adapter_labels.c.adapter_row_id)
            .where(owned(adapters, account), owned(adapter_labels, account), adapters.c.row_id == row_id)
            .order_by(former, adapter_labels.c.created_at.desc(), adapter_labels.c.label)
        )
        return list((await self._session.run(statement)).scalars())

    async def _refuse_model_name(self, account: str, name: str, param: str) -> None:
        if await model_in_use(self._session, account, name):
            raise NameTakenError(
                f"{param} {name!r} is the name of a model of yours; choose another.", param=param
            )

    async def _add_label(self, adapter: Adapter, label: str, now: float) -> None:
        fields = {"adapter_row_id": adapter.row_id, "account_id": adapter.account_id, "label": label}
        statement = self._session.insert(adapter_labels).values(**fields, created_at=now)
        again = {"created_at": now}
        keys = ("adapter_row_id", "label")
        await self._session.run(statement.on_conflict_do_update(index_elements=keys, set_=again))

    async def _update(self, account: str, row_id: int, **values: object) -> Adapter | None:
        statement = sa.update(adapters).where(owned(adapters, account), adapters.c.row_id == row_id)
        return await self._session.one(statement.values(**values).returning(*adapters.c), Adapter)

"""Attachments: the wishes that adapters be served by instances, and the slots they hold."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from pillion.core.errors import AlreadyAttachedError, ConflictError, InstanceAtCapacityError, NotFoundError
from pillion.core.replica import Failure
from pillion.store.everyone import Everyone
from pillion.store.instances import visible
from pillion.store.rows import Attachment, AttachmentState, Hold
from pillion.store.session import Session, owned
from pillion.store.tables import adapters, attachments, instances


class Attachments:
    """What is attached or pinned holds a slot until it is deleted or expires, also while it is detaching."""

    def __init__(self, session: Session, everyone: Everyone) -> None:
        self._session = session
        self._everyone = everyone

    async def create(
        self,
        account: str,
        *,
        adapter_row_id: int,
        instance_id: int,
        hold: Hold,
        capacity: int,
        wanted: int,
        now: float,
        pinned: bool = False,
        expires_at: float | None = None,
        session_key: str | None = None,
        drain_deadline_s: float = 30.0,
    ) -> Attachment:
        """State `attaching`, 0 of `wanted` ready. `capacity`: the instance's slots without the surge slot.

        Raises NotFoundError (adapter not the account's, instance neither its own nor a pool), ConflictError
        (instance not wanted running), AlreadyAttachedError, InstanceAtCapacityError (all slots held).
        """
        await self.lock_instance(account, instance_id)
        need = await self._slots(account, adapter_row_id)
        if (there := await self.find(account, adapter_row_id, instance_id)) is not None:
            raise AlreadyAttachedError(_already(there))
        await self._check_room(instance_id, capacity, now, need)
        fields = {
            "account_id": account,
            "adapter_row_id": adapter_row_id,
            "instance_id": instance_id,
            "hold": hold,
            "pinned": pinned,
            "expires_at": expires_at,
            "session_key": session_key,
            "state": "attaching",
            "ready": 0,
            "wanted": wanted,
            "created_at": now,
            "drain_deadline_s": drain_deadline_s,
        }
        statement = sa.insert(attachments).values(**fields).returning(*attachments.c)
        made = await self._session.one(statement, Attachment)
        assert made is not None
        await self._begin_anew(account, adapter_row_id, instance_id)
        return made

    async def renew(
        self,
        account: str,
        id: int,
        *,
        hold: Hold,
        pinned: bool,
        expires_at: float | None,
        session_key: str | None,
        capacity: int,
        now: float,
        drain_deadline_s: float = 30.0,
    ) -> Attachment:
        """Change how an existing one is held: pin, TTL, load to attach.

        One that failed, is over, was evicted, also on some replicas only, or is detaching begins again at `attaching`,
        and then takes no other's place. Raises NotFoundError, ConflictError and InstanceAtCapacityError as `create`
        does.
        """
        before = await self.get(account, id)
        if before is None:
            raise NotFoundError(f"There is no attachment {id}.")
        await self.lock_instance(account, before.instance_id)
        need = await self._slots(account, before.adapter_row_id)
        await self._check_room(before.instance_id, capacity, now, need, but=id)
        over = attachments.c.expires_at <= now  # agents may have let go of it already
        anew = attachments.c.state.in_(("failed", "registered", "detaching")) | sa.func.coalesce(over, False)
        # It made room on some replicas, and is wanted on all again.
        short = attachments.c.ready < attachments.c.wanted
        values = {
            "hold": hold,
            "pinned": pinned,
            "expires_at": expires_at,
            "session_key": session_key,
            "state": sa.case((anew | short, "attaching"), else_=attachments.c.state),
            "ready": sa.case((anew, 0), else_=attachments.c.ready),
            "error_code": sa.case((anew, None), else_=attachments.c.error_code),
            "error_message": sa.case((anew, None), else_=attachments.c.error_message),
            "replaces": sa.case((anew, None), else_=attachments.c.replaces),
            "drain_deadline_s": sa.case((anew, drain_deadline_s), else_=attachments.c.drain_deadline_s),
        }
        statement = sa.update(attachments).where(owned(attachments, account), attachments.c.id == id)
        after = await self._session.one(statement.values(**values).returning(*attachments.c), Attachment)
        if after is None:
            raise NotFoundError(f"There is no attachment {id}.")
        await self._begin_anew(account, after.adapter_row_id, after.instance_id)
        return after

    async def get(self, account: str, id: int, *, lock: bool = False) -> Attachment | None:
        """`lock`: it stays as it is found until the transaction ends."""
        statement = self._of(account).where(attachments.c.id == id)
        return await self._session.one(statement.with_for_update() if lock else statement, Attachment)

    async def find(
        self, account: str, adapter_row_id: int, instance_id: int, *, lock: bool = False
    ) -> Attachment | None:
        """`lock`: it stays as it is found until the transaction ends."""
        same = (attachments.c.adapter_row_id == adapter_row_id) & (attachments.c.instance_id == instance_id)
        statement = self._of(account).where(same)
        return await self._session.one(statement.with_for_update() if lock else statement, Attachment)

    async def list(
        self,
        account: str,
        *,
        adapter_row_id: int | None = None,
        instance_id: int | None = None,
        session_key: str | None = None,
    ) -> list[Attachment]:
        """The account's, oldest first: all, or those of an adapter, an instance, a session."""
        statement = self._of(account).order_by(attachments.c.id)
        wanted = {"adapter_row_id": adapter_row_id, "instance_id": instance_id, "session_key": session_key}
        for column, value in wanted.items():
            if value is not None:
                statement = statement.where(attachments.c[column] == value)
        return await self._session.all(statement, Attachment)

    async def update_state(
        self,
        account: str,
        id: int,
        *,
        state: AttachmentState,
        ready: int,
        wanted: int,
        error: Failure | None = None,
    ) -> bool:
        """What a controller found. False, and nothing done, where it is gone or detaching by now."""
        values = {
            "state": state,
            "ready": ready,
            "wanted": wanted,
            "error_code": error.code if error else None,
            "error_message": error.message if error else None,
        }
        statement = sa.update(attachments).where(
            owned(attachments, account), attachments.c.id == id, attachments.c.state != "detaching"
        )
        return await self._session.changed(statement.values(**values))

    async def mark_detaching(self, account: str, id: int, *, drain_deadline_s: float | None = None) -> bool:
        """Again is no error. False: not there."""
        values: dict[str, Any] = {"state": "detaching"}
        if drain_deadline_s is not None:
            values["drain_deadline_s"] = drain_deadline_s
        statement = sa.update(attachments).where(owned(attachments, account), attachments.c.id == id)
        return await self._session.changed(statement.values(**values))

    async def replace(self, account: str, id: int, instance_id: int | None) -> Attachment:
        """Once it is ready it takes the place of the one at that instance; None: of none. Raises NotFoundError."""
        statement = sa.update(attachments).where(owned(attachments, account), attachments.c.id == id)
        after = await self._session.one(
            statement.values(replaces=instance_id).returning(*attachments.c), Attachment
        )
        if after is None:
            raise NotFoundError(f"There is no attachment {id}.")
        return after

    async def delete(self, account: str, id: int, *, in_any_state: bool = False) -> bool:
        """Its slot is free. For what is proved gone from every replica.

        False, and nothing done, where it is not `detaching`: it was asked for again meanwhile.
        """
        statement = sa.delete(attachments).where(owned(attachments, account), attachments.c.id == id)
        if not in_any_state:
            statement = statement.where(attachments.c.state == "detaching")
        return await self._session.changed(statement)

    async def lock_instance(self, account: str, id: int) -> None:
        """One after the other from here: the count of held slots stays true until commit.

        Raises NotFoundError, ConflictError (not wanted running). Several are locked in the order of their ids.
        """
        statement = sa.select(instances.c.wanted).where(visible(account, pool=True), instances.c.id == id)
        wanted = await self._session.value(statement.with_for_update(key_share=True))
        if wanted is None:
            raise NotFoundError(f"There is no instance {id}.")
        if wanted != "running":
            raise ConflictError(f"Instance {id} is stopped or stopping; choose one that runs.")

    async def _slots(self, account: str, row_id: int) -> int:
        """How many the adapter takes: one, and one for its canary. It stays so until commit."""
        slots = sa.case((adapters.c.canary_version.is_(None), 1), else_=2)
        statement = sa.select(slots).where(owned(adapters, account), adapters.c.row_id == row_id)
        need = await self._session.value(statement.with_for_update(read=True, key_share=True))
        if need is None:
            raise NotFoundError(f"There is no adapter {row_id}.")
        return int(need)

    async def _begin_anew(self, account: str, adapter_row_id: int, instance_id: int) -> None:
        """An adapter whose time was over is loaded anew, and none that was to take its place there does so any more."""
        replaced = (attachments.c.adapter_row_id == adapter_row_id) & (attachments.c.replaces == instance_id)
        await self._session.run(
            sa.update(attachments).where(owned(attachments, account), replaced).values(replaces=None)
        )
        mine = owned(adapters, account) & (adapters.c.row_id == adapter_row_id)
        await self._session.run(
            sa.update(adapters).where(mine, adapters.c.ended_at.is_not(None)).values(ended_at=None)
        )

    async def _check_room(
        self, instance_id: int, capacity: int, now: float, need: int, *, but: int = 0
    ) -> None:
        held = await self._everyone.held_slots(instance_id, now, but=but)
        if held + need > capacity:
            raise InstanceAtCapacityError(
                f"model instance at capacity: instance {instance_id} holds {held} of {capacity} adapters; "
                "detach or unpin one, or use another instance."
            )

    def _of(self, account: str) -> sa.Select[Any]:
        return sa.select(attachments).where(owned(attachments, account))


def _already(there: Attachment) -> str:
    adapter, instance = f"adapter {there.adapter_row_id}", f"instance {there.instance_id}"
    if there.state == "detaching":
        within = f" for up to {there.drain_deadline_s:g} s" if there.drain_deadline_s is not None else ""
        return f"{adapter} is still being detached from {instance}, until its requests end{within}; then attach it again."
    return f"{adapter} is {there.hold} on {instance} already."

"""Adapters that come as an upload: streamed to disk, verified, registered, or gone without a trace."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from pillion.artifacts.receive import Stored, receive
from pillion.artifacts.store import Intake
from pillion.control import accounts, bases, lookup, registration, versions
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.views import AdapterView, VersionView
from pillion.core.adapters.bases import Base
from pillion.core.adapters.verify import Limits
from pillion.core.errors import AdapterTooLargeError, BaseMismatchError, InvalidRequestError
from pillion.store.rows import Adapter

MAX_CONFIG = 1 << 20
FIELDS = frozenset({"name", "base_model", "region"})


class Upload:
    """One upload in progress: its parts are written as they come, then it is registered."""

    def __init__(self, control: Control, who: Principal, intake: Intake, max_bytes: int) -> None:
        self._control, self._who, self._intake = control, who, intake
        self._max_bytes = max_bytes
        self._config: bytearray | None = None

    async def write_file(self, chunk: bytes) -> None:
        await self._intake.write(chunk)

    async def write_config(self, chunk: bytes) -> None:
        self._config = self._config or bytearray()
        self._config += chunk
        if len(self._config) > MAX_CONFIG:
            raise AdapterTooLargeError("adapter_config.json is over 1 MiB.", param="config")

    async def register(self, fields: dict[str, str]) -> AdapterView:
        """Verify what came and register it. Raises with every reason, and nothing is kept then."""
        control, who = self._control, self._who
        name, base_name, region = _read(fields)
        registration.check(control, name, region)
        self._check_file()
        base = await bases.base_of(control, who, base_name)
        await self._rehearse(name, base_name, region)
        stored = await self._receive(base)
        async with control.db.transaction() as tx:
            row = await registration.create(control, tx, who, name, base_name, region, "registered")
            row = await registration.first_version(control, tx, row, stored, {"upload": True})
            view = await lookup.adapter_view(control, tx, row)
        control.changes.notify()
        await control.controller.published()  # where it loads on demand it may be called at once
        return view

    async def add_version(self, ref: str, fields: dict[str, str], live: bool) -> tuple[VersionView, bool]:
        """Verify what came and keep it as a version of the adapter: the version, and whether it is new."""
        control, who = self._control, self._who
        async with control.db.read() as tx:
            row = await lookup.adapter(tx, who, ref)
        _check_same(row, fields)
        self._check_file()
        stored = await self._receive(await bases.base_of(control, who, row.base_model))
        async with control.db.transaction() as tx:
            view, new = await versions.add(control, tx, who, row, stored, {"upload": True}, live)
        control.changes.notify()
        if view.live:  # it must be resident nowhere
            view = replace(view, unacknowledged=await control.controller.published())
        return view, new

    def _check_file(self) -> None:
        if not self._intake.size:
            raise InvalidRequestError("part 'file' is missing or empty.", param="file")

    async def _receive(self, base: Base) -> Stored:
        limits = Limits(self._control.settings.max_rank, self._max_bytes)
        return await receive(
            self._intake, None if self._config is None else bytes(self._config), base, limits
        )

    async def _rehearse(self, name: str, base: str, region: str | None) -> None:
        """Raise what registering will raise before the bytes are kept, which then are not."""
        with suppress(_RehearsedError):
            async with self._control.db.transaction() as tx:
                await registration.create(self._control, tx, self._who, name, base, region, "registered")
                raise _RehearsedError


class _RehearsedError(Exception):
    """Rolls back a transaction that was only to show whether it could be done."""


@asynccontextmanager
async def receiving(control: Control, who: Principal) -> AsyncIterator[Upload]:
    """An upload of this account's. Raises `RateLimitError` where it has as many under way as it may."""
    caps = await accounts.caps(control, who.account)
    with control.uploads.one(who.account, caps.uploads):
        async with control.artifacts.intake(caps.adapter_bytes) as intake:
            yield Upload(control, who, intake, caps.adapter_bytes)


def _read(fields: dict[str, str]) -> tuple[str, str, str | None]:
    _check_known(fields)
    for needed in ("name", "base_model"):
        if not fields.get(needed):
            raise InvalidRequestError(f"part {needed!r} is missing.", param=needed)
    return fields["name"], fields["base_model"], fields.get("region") or None


def _check_known(fields: dict[str, str]) -> None:
    unknown = fields.keys() - FIELDS
    if unknown:
        raise InvalidRequestError(f"unknown parts: {', '.join(sorted(unknown))[:200]}.", param=min(unknown))


def _check_same(row: Adapter, fields: dict[str, str]) -> None:
    """Name, base and region are the adapter's: they may be left out, not changed."""
    _check_known(fields)
    if fields.get("base_model", row.base_model) != row.base_model:
        raise BaseMismatchError(
            f"adapter {row.name!r} rides on {row.base_model!r}; bytes for another base are another adapter.",
            param="base_model",
        )
    for name, own in (("name", row.name), ("region", row.region)):
        if fields.get(name, own) != own:
            raise InvalidRequestError(
                f"{name} of adapter {row.name!r} is {own!r} and stays so; leave it out.", param=name
            )

"""Adapters that come as an upload: streamed to disk, verified, registered, or gone without a trace."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from pillion.artifacts.receive import receive
from pillion.artifacts.store import Intake
from pillion.control import bases, lookup, registration
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.views import AdapterView
from pillion.core.adapters.verify import Limits
from pillion.core.errors import AdapterTooLargeError, InvalidRequestError

MAX_CONFIG = 1 << 20
FIELDS = frozenset({"name", "base_model", "region"})


class Upload:
    """One upload in progress: its parts are written as they come, then it is registered."""

    def __init__(self, control: Control, who: Principal, intake: Intake) -> None:
        self._control, self._who, self._intake = control, who, intake
        self._config = bytearray()

    async def write_file(self, chunk: bytes) -> None:
        await self._intake.write(chunk)

    async def write_config(self, chunk: bytes) -> None:
        self._config += chunk
        if len(self._config) > MAX_CONFIG:
            raise AdapterTooLargeError("adapter_config.json is over 1 MiB.", param="config")

    async def register(self, fields: dict[str, str]) -> AdapterView:
        """Verify what came and register it. Raises with every reason, and nothing is kept then."""
        control, who = self._control, self._who
        name, base_name, region = _read(fields)
        registration.check(control, name, region)
        if not self._intake.size:
            raise InvalidRequestError("part 'file' is missing or empty.", param="file")
        base = await bases.base_of(control, who, base_name)
        await self._rehearse(name, base_name, region)
        limits = Limits(control.settings.max_rank, control.settings.max_adapter_bytes)
        stored = await receive(self._intake, bytes(self._config) or None, base, limits)
        async with control.db.transaction() as tx:
            row = await registration.create(control, tx, who, name, base_name, region, "registered")
            row = await registration.add_version(control, tx, row, stored, {"upload": True})
            view = await lookup.adapter_view(control, tx, row)
        control.changes.notify()
        return view

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
    async with control.artifacts.intake(control.settings.max_adapter_bytes) as intake:
        yield Upload(control, who, intake)


def _read(fields: dict[str, str]) -> tuple[str, str, str | None]:
    unknown = fields.keys() - FIELDS
    if unknown:
        raise InvalidRequestError(f"unknown parts: {', '.join(sorted(unknown))[:200]}.", param=min(unknown))
    for needed in ("name", "base_model"):
        if not fields.get(needed):
            raise InvalidRequestError(f"part {needed!r} is missing.", param=needed)
    return fields["name"], fields["base_model"], fields.get("region") or None

"""The history leads to the tables, on both databases, also when several processes start at once."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from pillion.core.errors import ConflictError
from pillion.store import rows
from pillion.store.database import Database
from pillion.store.tables import metadata

MIGRATE = """
import asyncio, sys
from pillion.store.database import Database
async def main():
    database = Database.open(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    await database.migrate()
    async with database.transaction() as tx:
        print(await tx.accounts.count())
    await database.close()
asyncio.run(main())
"""


def differences(connection: sa.Connection) -> list[Any]:
    postgres = connection.dialect.name == "postgresql"  # SQLite knows no identity to compare
    options = {"compare_type": True, "compare_server_default": postgres}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


async def test_the_history_leads_to_the_tables(database: Database) -> None:
    async with database._write.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_table_that_differs_is_found(empty_url: str) -> None:
    database = Database.open(empty_url)
    await database.migrate()
    async with database._write.begin() as connection:
        await connection.exec_driver_sql("DROP INDEX ix_adapter_versions_digest")
        await connection.exec_driver_sql("ALTER TABLE settings ADD COLUMN extra INTEGER")
        assert len(await connection.run_sync(differences)) == 2
    await database.close()


async def test_migrating_again_changes_nothing(database: Database) -> None:
    await database.migrate()
    await database.migrate()


async def test_a_database_of_a_newer_version_is_left_alone(empty_url: str) -> None:
    database = Database.open(empty_url)
    await database.migrate()
    async with database._write.begin() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConflictError, match="made by another version of Pillion"):
        await database.migrate()
    await database.close()


def test_processes_may_migrate_at_once(empty_url: str) -> None:
    command = [sys.executable, "-W", "error", "-c", MIGRATE, empty_url]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[0] for process in processes] == ["0\n"] * 2
    assert [process.returncode for process in processes] == [0] * 2


ROWS: dict[str, Any] = {
    "accounts": rows.Account,
    "api_keys": rows.ApiKey,
    "members": rows.Member,
    "invites": rows.Invite,
    "logins": rows.Login,
    "registered_models": rows.RegisteredModel,
    "adapters": rows.Adapter,
    "adapter_versions": rows.AdapterVersion,
    "instances": rows.Instance,
    "attachments": rows.Attachment,
    "jobs": rows.Job,
    "job_log": rows.LogLine,
    "events": rows.Event,
    "audit": rows.AuditRecord,
    "leases": rows.Lease,
}


@pytest.mark.parametrize("table", sorted(ROWS))
def test_rows_have_the_columns(table: str) -> None:
    fields = [field.name for field in msgspec.structs.fields(ROWS[table])]
    assert fields == [column.name for column in metadata.tables[table].columns]

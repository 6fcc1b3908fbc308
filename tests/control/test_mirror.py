"""Control's copy of what is wanted: after any writes it is what a read of everything would give."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from pillion.control import mirror as module
from pillion.control.mirror import Mirror
from pillion.core.errors import ConflictError
from pillion.store.account_changes import KEPT_S
from pillion.store.database import Database
from pillion.store.rows import SnapshotRows
from pillion.store.transaction import Tx

NOW = 1_700_000_000.0
ACCOUNTS = ("acc_a", "acc_b", "acc_c")


@pytest.fixture
async def database(tmp_path: Path):
    database = Database.open(f"sqlite:///{tmp_path}/db")
    await database.migrate()
    yield database
    await database.close()


async def write(tx: Tx, draw: random.Random, number: int) -> None:
    account = draw.choice(ACCOUNTS)
    adapters = await tx.adapters.list(account)
    instances = await tx.instances.list(account, pool=True)
    what = draw.randrange(8)
    if what == 0:
        await tx.keys.create(
            account, f"key_{number}", lookup=f"L{number}", digest="d", name="n", scopes=[], now=NOW
        )
    elif what == 1:
        for key in (await tx.keys.list(account))[:1]:
            await tx.keys.revoke(account, key.id, NOW)
    elif what == 2:
        await tx.adapters.create(
            account, f"adp_{number}", name=f"n{number}", label=f"l{number}", base_model="b", now=NOW
        )
    elif what == 3 and adapters:
        await tx.adapters.rename(account, draw.choice(adapters).row_id, f"r{number}", NOW)
    elif what == 4:
        await tx.instances.create(draw.choice([account, None]), model="b", spec={}, now=NOW)
    elif what == 5 and instances:
        await tx.instances.set_state(account, draw.choice(instances).id, "stopped", NOW)
    elif what == 6 and adapters and instances:
        with contextlib.suppress(ConflictError):
            await tx.attachments.create(
                account,
                adapter_row_id=draw.choice(adapters).row_id,
                instance_id=draw.choice(instances).id,
                hold="loaded",
                capacity=99,
                wanted=1,
                now=NOW,
            )
    elif what == 7:
        for attachment in (await tx.attachments.list(account))[:1]:
            await tx.attachments.mark_detaching(account, attachment.id)


def in_order(rows: SnapshotRows) -> SnapshotRows:
    rows.keys.sort(key=lambda key: key.id)
    rows.adapters.sort(key=lambda found: found.adapter.row_id)
    return rows


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("many", [2, 200])
async def test_it_is_what_a_whole_read_gives(
    database: Database, monkeypatch: pytest.MonkeyPatch, seed: int, many: int
) -> None:
    monkeypatch.setattr(module, "MANY", many)
    draw = random.Random(seed)
    mirror = Mirror(database, lambda: 0.0)
    async with database.transaction() as tx:
        for account in ACCOUNTS:
            await tx.accounts.create(account, name=account, tier="shared", now=NOW)
    for number in range(60):
        async with database.transaction() as tx:
            for _ in range(draw.randint(0, 3)):
                await write(tx, draw, number * 10 + draw.randrange(10**6))
        assert in_order(await mirror.read()) == in_order(await database.snapshot_rows())


async def test_what_did_not_change_stays_the_same_object(database: Database) -> None:
    mirror = Mirror(database, lambda: 0.0)
    async with database.transaction() as tx:
        for account in ACCOUNTS:
            await tx.accounts.create(account, name=account, tier="shared", now=NOW)
            await tx.instances.create(account, model="b", spec={}, now=NOW)
    rows, parts = await mirror.read(), mirror.parts
    assert await mirror.read() is rows
    async with database.transaction() as tx:
        await tx.instances.create("acc_b", model="b", spec={}, now=NOW)
    assert await mirror.read() is not rows
    assert mirror.parts["acc_a"] is parts["acc_a"]
    assert mirror.parts["acc_b"] is not parts["acc_b"]


async def test_after_a_long_time_everything_is_read(database: Database) -> None:
    now = [0.0]
    mirror = Mirror(database, lambda: now[0])
    await mirror.read()
    async with database.transaction() as tx:
        await tx.accounts.create("acc_a", name="a", tier="shared", now=NOW)
        await tx.instances.create("acc_a", model="b", spec={}, now=NOW)
        await tx.changes.forget(4e9)
    assert not (await mirror.read()).instances
    now[0] = KEPT_S
    assert len((await mirror.read()).instances) == 1


async def test_an_account_of_another_tier_is_noticed(database: Database) -> None:
    mirror = Mirror(database, lambda: 0.0)
    async with database.transaction() as tx:
        await tx.accounts.create("acc_a", name="a", tier="reserved", now=NOW)
        await tx.accounts.create("acc_b", name="b", tier="shared", now=NOW)
    assert (await mirror.read()).tiers == {"acc_a": "reserved"}
    async with database.transaction() as tx:
        await tx.accounts.update("acc_a", tier="shared")
        await tx.accounts.update("acc_b", tier="dedicated")
    assert (await mirror.read()).tiers == {"acc_b": "dedicated"}

"""ledger and billing"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

Int = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

revision = "0006"
down_revision = "0005"


# Also where somebody writes to the database past Pillion.
SQLITE = [
    f"CREATE TRIGGER ledger_entries_no_{verb.lower()} BEFORE {verb} ON ledger_entries {when} "
    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    for verb, when in (
        ("UPDATE", ""),
        ("DELETE", ""),
        # REPLACE deletes without telling.
        (
            "INSERT",
            "WHEN EXISTS (SELECT 1 FROM ledger_entries "
            "WHERE id = NEW.id OR (account_id = NEW.account_id AND key = NEW.key))",
        ),
    )
]
POSTGRES = [
    "CREATE FUNCTION ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$",
    "CREATE TRIGGER ledger_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entries "
    "FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_append_only()",
]


def upgrade() -> None:
    op.create_table(
        "bills",
        sa.Column("instance_id", Int, autoincrement=False, nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("held", Int, autoincrement=False, nullable=False),
        sa.Column("number", Int, autoincrement=False, nullable=False),
        sa.Column("open", sa.Boolean(), nullable=False),
        sa.Column("opened_at", sa.Double(), nullable=False),
        sa.CheckConstraint("held >= 0", name="ck_bills_held"),
        sa.PrimaryKeyConstraint("instance_id", name=op.f("pk_bills")),
    )
    with op.batch_alter_table("bills", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_bills_open"), ["open"], unique=False)

    op.create_table(
        "carries",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("price_id", Int, autoincrement=False, nullable=False),
        sa.Column("remainder", Int, autoincrement=False, nullable=False),
        sa.Column("owed", Int, autoincrement=False, nullable=False),
        sa.Column("number", Int, autoincrement=False, nullable=False),
        sa.Column("posted_hour", Int, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("account_id", "price_id", name=op.f("pk_carries")),
    )
    op.create_table(
        "ledger_entries",
        sa.Column("id", Int, sa.Identity(always=False), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("amount", Int, autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("hour", Int, autoincrement=False, nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("detail", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("available_after", Int, autoincrement=False, nullable=False),
        sa.Column("held_after", Int, autoincrement=False, nullable=False),
        sa.CheckConstraint("amount > 0", name="ck_ledger_entries_amount"),
        sa.CheckConstraint("source <> target", name="ck_ledger_entries_books"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_entries")),
        sa.UniqueConstraint("account_id", "key", name=op.f("uq_ledger_entries_account_id_key")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("ledger_entries", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_ledger_entries_account_id_hour"), ["account_id", "hour"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_ledger_entries_account_id_id"), ["account_id", "id"], unique=False
        )

    op.create_table(
        "prices",
        sa.Column("id", Int, sa.Identity(always=False), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("item", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("hourly", Int, autoincrement=False, nullable=False),
        sa.Column("input", Int, autoincrement=False, nullable=False),
        sa.Column("output", Int, autoincrement=False, nullable=False),
        sa.Column("effective_ms", Int, autoincrement=False, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prices")),
        sa.UniqueConstraint(
            "kind", "item", "region", "effective_ms", name=op.f("uq_prices_kind_item_region_effective_ms")
        ),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "runs",
        sa.Column("id", Int, sa.Identity(always=False), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("instance_id", Int, autoincrement=False, nullable=False),
        sa.Column("replica", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("gpu_type", sa.Text(), nullable=False),
        sa.Column("gpu_count", Int, autoincrement=False, nullable=False),
        sa.Column("began_ms", Int, autoincrement=False, nullable=False),
        sa.Column("seen_ms", Int, autoincrement=False, nullable=False),
        sa.Column("charged_ms", Int, autoincrement=False, nullable=False),
        sa.Column("open", sa.Boolean(), nullable=False),
        sa.Column("billed", sa.Boolean(), nullable=False),
        sa.CheckConstraint("began_ms <= charged_ms AND charged_ms <= seen_ms", name="ck_runs_order"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_runs_instance_id"), ["instance_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_runs_replica"), ["replica"], unique=False)
        batch_op.create_index(
            "uq_runs_open",
            ["replica"],
            unique=True,
            sqlite_where=sa.text("open"),
            postgresql_where=sa.text("open"),
        )

    op.create_table(
        "slices",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Text(), nullable=False),
        sa.Column("number", Int, autoincrement=False, nullable=False),
        sa.Column("given", Int, autoincrement=False, nullable=False),
        sa.Column("outstanding", Int, autoincrement=False, nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.CheckConstraint("outstanding >= 0", name="ck_slices_outstanding"),
        sa.PrimaryKeyConstraint("account_id", "gateway", "epoch", name=op.f("pk_slices")),
    )
    with op.batch_alter_table("slices", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_slices_until"), ["until"], unique=False)

    op.create_table(
        "wallets",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("available", Int, autoincrement=False, nullable=False),
        sa.Column("held", Int, autoincrement=False, nullable=False),
        sa.Column("leased", Int, autoincrement=False, nullable=False),
        sa.Column("owed", Int, autoincrement=False, nullable=False),
        sa.CheckConstraint("available >= 0", name="ck_wallets_available"),
        sa.CheckConstraint("held >= 0", name="ck_wallets_held"),
        sa.CheckConstraint("leased >= 0", name="ck_wallets_leased"),
        sa.CheckConstraint("owed >= 0", name="ck_wallets_owed"),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_wallets")),
    )
    for statement in SQLITE if op.get_bind().dialect.name == "sqlite" else POSTGRES:
        op.execute(statement)

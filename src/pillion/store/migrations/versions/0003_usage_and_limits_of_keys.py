"""usage, and limits of keys"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

Int = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "usage_events",
        sa.Column("id", Int, sa.Identity(always=False), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("spool", sa.Text(), nullable=False),
        sa.Column("seq", Int, autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("adapter_id", sa.Text(), nullable=True),
        sa.Column("adapter_version", Int, autoincrement=False, nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("instance_id", Int, autoincrement=False, nullable=False),
        sa.Column("replica", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", Int, autoincrement=False, nullable=True),
        sa.Column("cached_tokens", Int, autoincrement=False, nullable=True),
        sa.Column("completion_tokens", Int, autoincrement=False, nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("ttft_ms", sa.Double(), nullable=True),
        sa.Column("duration_ms", sa.Double(), nullable=False),
        sa.Column("cold", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_events")),
        sa.UniqueConstraint("spool", "seq", name=op.f("uq_usage_events_spool_seq")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("usage_events", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_usage_events_account_id_at"), ["account_id", "at"], unique=False)
        batch_op.create_index(batch_op.f("ix_usage_events_account_id_id"), ["account_id", "id"], unique=False)

    op.create_table(
        "usage_hours",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("hour", Int, autoincrement=False, nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("adapter_id", sa.Text(), nullable=False),
        sa.Column("adapter_version", Int, autoincrement=False, nullable=False),
        sa.Column("instance_id", Int, autoincrement=False, nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("requests", Int, autoincrement=False, nullable=False),
        sa.Column("prompt_tokens", Int, autoincrement=False, nullable=False),
        sa.Column("cached_tokens", Int, autoincrement=False, nullable=False),
        sa.Column("completion_tokens", Int, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint(
            "account_id",
            "hour",
            "key_id",
            "base_model",
            "adapter_id",
            "adapter_version",
            "instance_id",
            "outcome",
            name=op.f("pk_usage_hours"),
        ),
    )
    op.create_table(
        "usage_spools",
        sa.Column("spool", sa.Text(), nullable=False),
        sa.Column("mark", Int, autoincrement=False, nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("spool", name=op.f("pk_usage_spools")),
    )
    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        batch_op.add_column(sa.Column("expires_at", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("requests_per_minute", Int, autoincrement=False, nullable=True))
        batch_op.add_column(sa.Column("tokens_per_minute", Int, autoincrement=False, nullable=True))

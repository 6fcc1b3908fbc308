"""slices for keys with a limit"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    with op.batch_alter_table("slices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("key_id", sa.Text(), server_default="", nullable=False))
        batch_op.drop_constraint("pk_slices", type_="primary")
        batch_op.create_primary_key("pk_slices", ["account_id", "gateway", "epoch", "key_id"])
    with op.batch_alter_table("usage_hours", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_usage_hours_account_id_key_id_hour"),
            ["account_id", "key_id", "hour"],
            unique=False,
        )

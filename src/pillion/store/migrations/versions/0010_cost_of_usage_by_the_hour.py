"""cost of usage by the hour"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

Int = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    with op.batch_alter_table("usage_hours", schema=None) as batch_op:
        batch_op.add_column(sa.Column("cost", Int, server_default="0", nullable=False))

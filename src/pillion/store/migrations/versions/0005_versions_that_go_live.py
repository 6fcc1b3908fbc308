"""versions that go live"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

Int = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    with op.batch_alter_table("adapter_versions", schema=None) as batch_op:
        batch_op.add_column(sa.Column("live_at", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("error_code", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("error_message", sa.Text(), nullable=True))

    with op.batch_alter_table("adapters", schema=None) as batch_op:
        batch_op.add_column(sa.Column("wanted_version", Int, autoincrement=False, nullable=True))
        batch_op.add_column(sa.Column("wanted_at", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("previous_version", Int, autoincrement=False, nullable=True))
        batch_op.add_column(sa.Column("canary_version", Int, autoincrement=False, nullable=True))
        batch_op.add_column(sa.Column("canary_share", sa.Double(), nullable=True))

    # Until now the first version was the live one.
    first = "UPDATE adapter_versions SET live_at = created_at WHERE version = 1"
    op.execute(first, execution_options={"everyone": True})

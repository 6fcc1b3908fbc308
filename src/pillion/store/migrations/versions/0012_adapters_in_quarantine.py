"""adapters in quarantine"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("adapters", sa.Column("refused_name", sa.Text(), nullable=True))
    op.add_column("adapters", sa.Column("refused_until", sa.Double(), nullable=True))

"""`python -m pillion.store.migrations.revise "why"` writes what `tables.py` has and the history lacks.

Read and edit what it wrote: a rename looks to it like a drop and an add. There is no way down.
"""

from __future__ import annotations

import sys
from pathlib import Path

import sqlalchemy as sa
from alembic import command

from pillion.store.migrations import config, upgrade


def revise(message: str) -> None:
    """Raises alembic's CommandError."""
    number = len(list((Path(__file__).parent / "versions").glob("*.py"))) + 1
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    with engine.begin() as connection:
        upgrade(connection)
        command.revision(config(connection), message, autogenerate=True, rev_id=f"{number:04d}")


if __name__ == "__main__":
    revise(sys.argv[1])

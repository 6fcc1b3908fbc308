"""Run by Alembic for every command, with the connection that it was given."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context

from pillion.store.tables import Int, PlainText, metadata


def render(kind: str, item: Any, _context: object) -> str | Literal[False]:
    """Types of ours as what they are today: history does not change when the code does."""
    if kind == "type" and isinstance(item, PlainText):
        return "sa.Text()"
    return "Int" if kind == "type" and item is Int else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,
    render_item=render,
)
context.run_migrations()

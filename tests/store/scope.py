"""The lint of tenancy, run on every statement that tests execute.

A statement must bind the account of every tenant table that it touches: in its WHERE or its VALUES, in every branch of an
OR. Statements of `store.everyone` are marked and may do without.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList, Grouping, Null

from pillion.store.tables import TENANT_TABLES


class UnscopedError(AssertionError):
    pass


def refuse_unscoped(
    _connection: sa.Connection, statement: Any, _many: Any, _params: Any, options: dict[str, Any]
) -> None:
    """For SQLAlchemy's `before_execute`."""
    if not options.get("everyone") and (found := unscoped(statement)):
        raise UnscopedError(f"touches {', '.join(sorted(found))} without its account:\n{statement}")


def unscoped(statement: Any) -> set[str]:
    """The tenant tables whose account the statement leaves open."""
    if isinstance(statement, sa.TextClause):
        return {name for name in TENANT_TABLES if name in statement.text}
    found: set[str] = set()
    for part in visitors.iterate(statement):
        found |= _open_tables(part)
    return found


def _open_tables(part: Any) -> set[str]:
    if isinstance(part, sa.Select):
        tables = {table for source in part.get_final_froms() for table in _tables(source)}
        return {table.name for table in tables if not _binds(part.whereclause, table)}
    if isinstance(part, sa.Update | sa.Delete):
        return {name for name in _tenant(part.table) if not _binds(part.whereclause, part.table)}
    if isinstance(part, sa.Insert):
        return set() if _gives_account(part) else _tenant(part.table)
    return set()


def _tables(source: Any) -> set[sa.Table]:
    return {
        each for each in visitors.iterate(source) if isinstance(each, sa.Table) and each.name in TENANT_TABLES
    }


def _tenant(table: Any) -> set[str]:
    return {table.name} & TENANT_TABLES


def _gives_account(insert: Any) -> bool:
    rows = insert._multi_values[0] if insert._multi_values else [insert._values or {}]
    return all("account_id" in {getattr(column, "key", column) for column in row} for row in rows)


def _binds(where: Any, table: Any) -> bool:
    """Whether `where` holds only for one account's rows of `table`, or only for the operator's."""
    if isinstance(where, Grouping):
        return _binds(where.element, table)
    if isinstance(where, BooleanClauseList):
        branches = [_binds(branch, table) for branch in where.clauses]
        return any(branches) if where.operator is operators.and_ else all(branches)
    if not isinstance(where, BinaryExpression) or where.left is not table.c.account_id:
        return False
    if where.operator is operators.is_:
        return isinstance(where.right, Null)
    return where.operator is operators.eq and isinstance(where.right, BindParameter)

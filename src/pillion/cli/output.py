"""What commands print: a table on a terminal, tab-separated lines without a header in a pipe, or JSON."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import typer

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_ESCAPES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class HasRaw(Protocol):
    raw: dict[str, Any]


T = TypeVar("T", bound=HasRaw)
Format = Callable[[Any], str]


@dataclass(frozen=True)
class Column(Generic[T]):
    """A title, the value, and how a terminal shows it (`size`, `moment`, …); pipes get it exact."""

    title: str
    value: Callable[[T], Any]
    format: Format | None = None


def on_terminal() -> bool:
    return sys.stdout.isatty()


def print_json(document: Any) -> None:
    """One document: indented on a terminal, one line in a pipe."""
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2 if on_terminal() else None))


def print_line(document: Any) -> None:
    """One of several documents: always one line."""
    typer.echo(json.dumps(document, ensure_ascii=False))
    sys.stdout.flush()


def print_records(records: Iterable[T], columns: Sequence[Column[T]], as_json: bool) -> None:
    """A list. As JSON it is one whole page, however many the server sent."""
    found = list(records)
    if as_json:
        print_json({"object": "list", "data": [r.raw for r in found], "has_more": False, "next": None})
        return
    rows = [[_cell(column, record) for column in columns] for record in found]
    print_rows([column.title for column in columns], rows)


def print_record(record: T, columns: Sequence[Column[T]], as_json: bool) -> None:
    """One thing, a line for each of its fields; fields that are not there are left out on a terminal."""
    if as_json:
        print_json(record.raw)
        return
    width = max(len(column.title) for column in columns)
    for column in columns:
        cell = _cell(column, record)
        if not on_terminal():
            typer.echo(f"{column.title}\t{cell}")
        elif cell:
            typer.echo(f"{column.title.ljust(width)}  {cell}")


def print_rows(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not on_terminal():
        for row in rows:
            typer.echo("\t".join(row))
        return
    if not rows:
        typer.echo("none", err=True)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title.upper().replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell or "-") for cell in row))
    Console().print(table)


def note(text: str) -> None:
    """A word beside the result, on stderr."""
    typer.echo(plain(text), err=True)


def plain(value: Any) -> str:
    """One line without control characters, whatever a server or an engine has put there."""
    return _CONTROL.sub(" ", str(value)).strip()


def printable(text: str) -> str:
    """Text in which a terminal finds nothing to obey; line breaks and tabs stay."""
    return _ESCAPES.sub("", text)


def size(number: float) -> str:
    """1234567 as `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def money(amount: int) -> str:
    """1e-6 of the currency as a decimal: -2490000 as `-2.49`."""
    whole, part = divmod(abs(amount), 1_000_000)
    places = f"{part:06}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount < 0 else ''}{whole}.{places}"


def micros(text: str) -> int:
    """A decimal as typed, in 1e-6. Raises `typer.BadParameter`."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text):
        raise typer.BadParameter(f"{text!r} is no amount; give a decimal with at most 6 places, e.g. 2.49.")
    whole, _, part = text.partition(".")
    return int(whole) * 1_000_000 + int(part.ljust(6, "0"))


def moment(seconds: float) -> str:
    """Local time, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def second(seconds: float) -> str:
    """Local time, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def utc(seconds: float | None) -> str | None:
    return None if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _cell(column: Column[T], record: T) -> str:
    value = column.value(record)
    if value is None or value == "" or value == []:
        return ""
    if column.format in (moment, second) and not on_terminal():
        return utc(value) or ""
    if column.format is not None and on_terminal():
        return plain(column.format(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return plain(", ".join(str(element) for element in value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return plain(value)

"""Requests over time: who was asked for when, how much was said, and how large each adapter is."""

from __future__ import annotations

import csv
import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

PROMPT_TOKENS, TOKENS, SIZE_MB = 200, 64, 20.0
COLUMNS = ("at", "adapter", "prompt_tokens", "tokens", "size_mb")


class TraceError(Exception):
    """A file that is no trace: says where, and what is wrong there."""


@dataclass(frozen=True)
class Trace:
    """`at` in seconds from the first request on, not falling; `adapter`, `prompt_tokens` and `tokens` of the same length.

    `adapter` holds indices of `names` and `sizes` (bytes).
    """

    at: array[float]
    adapter: array[int]
    prompt_tokens: array[int]
    tokens: array[int]
    names: Sequence[str]
    sizes: Sequence[int]

    def __len__(self) -> int:
        return len(self.at)


def read(path: Path) -> Trace:
    """From CSV with a header, or one JSON object per line where the name ends in `.jsonl`.

    `at` (seconds, or a moment as ISO 8601) and `adapter` are needed; `prompt_tokens`, `tokens` and `size_mb` have defaults.
    Lines need not be in the order of time. Raises `TraceError`, also where there is no such file.
    """
    rows = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line, row in _json(file) if path.suffix == ".jsonl" else _csv(file):
                rows.append(_request(f"{path}:{line}", row))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: {error}") from error
    if not rows:
        raise TraceError(f"{path}: there is no request in it")
    rows.sort(key=lambda row: row[0])
    names: dict[str, int] = {}
    sizes: list[int] = []
    for row in rows:
        if names.setdefault(row[1], len(names)) == len(sizes):
            sizes.append(row[4])
    return Trace(
        array("d", (row[0] - rows[0][0] for row in rows)),
        array("l", (names[row[1]] for row in rows)),
        array("l", (row[2] for row in rows)),
        array("l", (row[3] for row in rows)),
        tuple(names),
        sizes,
    )


def write(trace: Trace, path: Path) -> None:
    """As CSV. Raises `OSError`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for at, adapter, prompt, tokens in zip(
            trace.at, trace.adapter, trace.prompt_tokens, trace.tokens, strict=True
        ):
            table.writerow(
                (f"{at:.6f}", trace.names[adapter], prompt, tokens, f"{trace.sizes[adapter] / 1e6:g}")
            )


def _csv(file: Iterator[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    table = csv.DictReader(file)
    for row in table:
        yield table.line_num, row


def _json(file: Iterator[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                yield number, error


def _request(place: str, row: Any) -> tuple[float, str, int, int, int]:
    if not isinstance(row, Mapping):
        raise TraceError(f"{place}: this is no JSON object")
    adapter = row.get("adapter")
    if not isinstance(adapter, str) or not adapter:
        raise TraceError(f"{place}: 'adapter' is missing; needed are 'at' and 'adapter'")
    size = _number(place, row, "size_mb", SIZE_MB)
    return (
        _moment(place, row.get("at")),
        adapter,
        int(_number(place, row, "prompt_tokens", PROMPT_TOKENS)),
        int(_number(place, row, "tokens", TOKENS)),
        int(size * 1e6),
    )


def _moment(place: str, value: Any) -> float:
    if isinstance(value, str) and "T" in value:
        try:
            return datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
        except ValueError as error:
            raise TraceError(f"{place}: 'at' is {value!r}, which is no moment") from error
    return _number(place, {"at": value}, "at", None)


def _number(place: str, row: Mapping[str, Any], name: str, default: float | None) -> float:
    value = row.get(name)
    if value in (None, "") and default is not None:
        return default
    try:
        number = float(value if isinstance(value, (str, int, float)) else "")
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and (number >= 0 or name == "at")):
        wanted = "seconds, or a moment as ISO 8601" if name == "at" else "a number, 0 or more"
        raise TraceError(f"{place}: '{name}' is {value!r}; it must be {wanted}")
    return number

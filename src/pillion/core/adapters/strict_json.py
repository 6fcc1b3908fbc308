"""JSON as strangers send it: one object, no traps."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from pillion.core.adapters.findings import invalid, shown


def parse_object(data: bytes, what: str, limit: int) -> dict[str, Any]:
    """The JSON object in `data`, which is UTF-8 of at most `limit` bytes.

    Refused with `AdapterInvalidError`: anything but an object, duplicate keys at any depth, NaN and
    infinities, numbers too long to be meant, nesting deep enough to exhaust a parser. `what` names the
    document in the reason.
    """
    if len(data) > limit:
        raise invalid([f"{what} has {len(data)} bytes; at most {limit} are read"])
    try:
        parsed = json.loads(
            data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise invalid([f"{what} is not UTF-8 (byte {error.start})"]) from error
    except RecursionError as error:
        raise invalid([f"{what} is nested too deeply"]) from error
    except ValueError as error:
        raise invalid([f"{what} is not valid JSON: {str(error)[:200]}"]) from error
    if not isinstance(parsed, dict):
        raise invalid([f"{what} must be a JSON object, not {type(parsed).__name__}"])
    return parsed


def is_int(value: object) -> bool:
    """An integer proper: in Python, and so in parsed JSON, `true` would pass for 1."""
    return isinstance(value, int) and not isinstance(value, bool)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} appears twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")

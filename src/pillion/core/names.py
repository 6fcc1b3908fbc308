"""The grammar of the names a client puts in `model` and of adapter refs (SPEC §2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from pillion.core.errors import InvalidRequestError, NameTakenError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
ADAPTER_ID = re.compile(r"adp_[a-z0-9]{20}")
RESERVED = frozenset({"status", "upload", "warmup"})
_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
MAX_ROW_ID = 2**53 - 1


def new_id(prefix: str, choice: Callable[[str], str]) -> str:
    """A public id such as `adp_…` or `key_…`: the prefix and 20 random characters (103 bits)."""
    return f"{prefix}_" + "".join(choice(_ID_ALPHABET) for _ in range(20))


def engine_name(adapter_id: str, digest: str) -> str:
    """The name an engine knows a version by: never reused for other bytes, never shared (SPEC §3)."""
    return f"{adapter_id}@{digest}"


def is_name(text: str) -> bool:
    return NAME.fullmatch(text) is not None


def is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def check_model_name(name: str, param: str = "name") -> str:
    if not is_name(name):
        raise InvalidRequestError(
            f"{param} {name[:80]!r} is not a name: 1 to 63 of a-z 0-9 . _ -, beginning with a letter or digit.",
            param=param,
        )
    return name


def check_adapter_name(name: str, models: Collection[str], param: str = "name") -> str:
    """An adapter's name or label: not all digits, no `adp_`, not reserved, no model the account can see."""
    check_model_name(name, param)
    if is_digits(name):
        raise InvalidRequestError(
            f"{param} {name!r} is all digits, which would read as a row id.", param=param
        )
    if name.startswith("adp_"):
        raise InvalidRequestError(f"{param} {name!r} begins with adp_, which is kept for ids.", param=param)
    if name in RESERVED:
        raise InvalidRequestError(f"{param} {name!r} is a reserved word.", param=param)
    if name in models:
        raise NameTakenError(f"{param} {name!r} is the name of a model; choose another.", param=param)
    return name


@dataclass(frozen=True)
class Ref:
    """How an adapter is named outside `model`: exactly one of the three is set."""

    id: str | None = None
    row_id: int | None = None
    name: str | None = None


def parse_ref(text: str) -> Ref | None:
    """An adapter's public id, row id or name; None where it can be none of them."""
    if ADAPTER_ID.fullmatch(text):
        return Ref(id=text)
    row_id = parse_row_id(text)
    if row_id is not None:
        return Ref(row_id=row_id)
    if is_name(text) and not is_digits(text) and not text.startswith("adp_"):
        return Ref(name=text)
    return None


def parse_row_id(text: str) -> int | None:
    """A positive integer as we print it: no sign, no leading zero, within a JSON number."""
    if not is_digits(text) or text.startswith("0") or len(text) > 16:
        return None
    number = int(text)
    return number if number <= MAX_ROW_ID else None


@dataclass(frozen=True)
class ModelString:
    """A `model` taken apart, not yet looked up. `row_id` is set where the tail is all digits."""

    head: str
    tail: str | None = None
    row_id: int | None = None


def parse_model(text: str) -> ModelString | None:
    """`<base>`, `<label>:<row id>`, `<model>:<instance id>` or `<base>:<adapter name>`; None if none of them."""
    head, colon, tail = text.partition(":")
    if not is_name(head):
        return None
    if not colon:
        return ModelString(head)
    if is_digits(tail):
        row_id = parse_row_id(tail)
        return None if row_id is None else ModelString(head, tail, row_id)
    return ModelString(head, tail) if is_name(tail) else None

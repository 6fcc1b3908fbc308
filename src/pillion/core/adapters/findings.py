"""Reasons why an adapter is refused, gathered so that one answer names them all."""

from __future__ import annotations

from collections.abc import Iterable

from pillion.core.errors import AdapterInvalidError

MAX_REASONS = 200
_IN_MESSAGE = 3
_SHOWN = 160


def invalid(reasons: Iterable[str]) -> AdapterInvalidError:
    """The error for these reasons. Beyond `MAX_REASONS` the rest are counted: an answer has to stay an
    answer."""
    found = list(dict.fromkeys(reasons))
    if len(found) > MAX_REASONS:
        found[MAX_REASONS:] = [f"and {len(found) - MAX_REASONS} more reasons like these"]
    message = "The adapter cannot be accepted: " + "; ".join(found[:_IN_MESSAGE])
    if len(found) > _IN_MESSAGE:
        message += f"; and {len(found) - _IN_MESSAGE} more, all in `reasons`"
    return AdapterInvalidError(message + ".", reasons=tuple(found))


def shown(value: object) -> str:
    """A value from a file as a reason may quote it: short, printable, plain ASCII."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"

"""API keys: `pil_` + lookup id + secret + checksum. Shown once, kept as a keyed digest (SPEC §1)."""

from __future__ import annotations

import hashlib
import hmac
import zlib
from collections.abc import Callable
from dataclasses import dataclass

PREFIX = "pil_"
LOOKUP_LENGTH = 12
SECRET_LENGTH = 32
CHECKSUM_LENGTH = 6
LENGTH = len(PREFIX) + LOOKUP_LENGTH + SECRET_LENGTH + CHECKSUM_LENGTH
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SCOPES = ("inference", "manage", "admin")


@dataclass(frozen=True)
class Key:
    """A key as its owner holds it. `lookup` is public, `text` is not."""

    text: str
    lookup: str


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, rest = divmod(number, 62)
        digits.append(ALPHABET[rest])
    return "".join(reversed(digits))


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), CHECKSUM_LENGTH)


def mint(choice: Callable[[str], str]) -> Key:
    """A new key. `choice` picks one character of a string from a secure source (`secrets.choice`)."""
    body = "".join(choice(ALPHABET) for _ in range(LOOKUP_LENGTH + SECRET_LENGTH))
    return Key(PREFIX + body + _checksum(body), body[:LOOKUP_LENGTH])


def parse(text: str) -> Key | None:
    """The key in `text`, or None where form or checksum is wrong: a typo needs no look-up."""
    if len(text) != LENGTH or not text.startswith(PREFIX) or not text.isascii():
        return None
    body = text[len(PREFIX) : -CHECKSUM_LENGTH]
    if not body.isalnum() or not hmac.compare_digest(_checksum(body), text[-CHECKSUM_LENGTH:]):
        return None
    return Key(text, body[:LOOKUP_LENGTH])


def digest(pepper: bytes, text: str) -> str:
    """HMAC-SHA-256 of the whole key under the installation's pepper, hex."""
    return hmac.new(pepper, text.encode(), hashlib.sha256).hexdigest()


def matches(pepper: bytes, text: str, stored: str) -> bool:
    return hmac.compare_digest(digest(pepper, text), stored)

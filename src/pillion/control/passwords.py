"""Passwords, as argon2id hashes (RFC 9106)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError

T = TypeVar("T")

AT_ONCE = 2  # each takes its memory


class Passwords:
    """The defaults are RFC 9106's second choice: 3 passes over 64 MiB in 4 lanes."""

    def __init__(self, passes: int = 3, memory_kib: int = 65536, lanes: int = 4) -> None:
        self._hasher = PasswordHasher(passes, memory_kib, lanes)
        self._room = asyncio.Semaphore(AT_ONCE)
        self._nobodys: str | None = None

    async def hash(self, text: str) -> str:
        return await self._apart(lambda: self._hasher.hash(text))

    async def check(self, text: str, kept: str | None) -> bool:
        """Whether it is the one. Nobody's (None) takes as long."""
        if self._nobodys is None:
            self._nobodys = await self.hash("nobody's")
        against = kept or self._nobodys
        return await self._apart(lambda: self._matches(against, text)) and kept is not None

    def outdated(self, kept: str) -> bool:
        """Whether it was made with other costs than these."""
        return self._hasher.check_needs_rehash(kept)

    async def _apart(self, work: Callable[[], T]) -> T:
        async with self._room:
            return await asyncio.to_thread(work)

    def _matches(self, kept: str, text: str) -> bool:
        try:
            return self._hasher.verify(kept, text)
        except (VerifyMismatchError, InvalidHashError):
            return False

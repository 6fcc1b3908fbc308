"""A stream that only goes forward, with bounds, for readers that think they may seek."""

from __future__ import annotations

import io
from collections.abc import Callable

from pillion.artifacts.files import CHUNK

MAX_READ = 2**21


class ForwardStream(io.RawIOBase):
    """`source` as a file that can be told and sought forward. `check` is called with every new position.

    More than what `allow` said last, or more than `MAX_READ` bytes at once, are refused to a reader with `ValueError`: a
    lying header must not choose how much memory is taken, nor headers before headers.
    """

    def __init__(self, source: io.BufferedIOBase, check: Callable[[int], None]) -> None:
        self._source = source
        self._check = check
        self._position = 0
        self._allowed = 0

    def allow(self, size: int) -> None:
        """From now on so many bytes may be read, beside those that are skipped."""
        self._allowed = size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ:
            raise ValueError("a block of the archive is too long")
        data = self._next(size)
        self._allowed -= len(data)
        if self._allowed < 0:
            raise ValueError("an entry of the archive has too long headers")
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Forward only. Beyond the end the position stays there, as a file's does not: the next read gives
        nothing."""
        if whence != io.SEEK_SET or offset < self._position:
            raise ValueError("the archive goes backwards")
        while self._position < offset and self._next(min(CHUNK, offset - self._position)):
            pass
        return self._position

    def _next(self, size: int) -> bytes:
        data = self._source.read(size)
        self._position += len(data)
        self._check(self._position)
        return data

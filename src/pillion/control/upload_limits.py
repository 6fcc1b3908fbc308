"""How many uploads an account has under way at once, at this control."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from pillion.core.errors import RateLimitError


class UploadLimits:
    """Uploads under way, by account."""

    def __init__(self) -> None:
        self._under_way: Counter[str] = Counter()

    @contextmanager
    def one(self, account: str, most: int) -> Iterator[None]:
        """Counts one more. Raises `RateLimitError` where there are `most`."""
        if self._under_way[account] >= most:
            raise RateLimitError(
                f"{most} uploads of this account are under way, as many as may be at once. Try again when one has ended.",
                retry_after=1.0,
            )
        self._under_way[account] += 1
        try:
            yield
        finally:
            self._under_way[account] -= 1
            if not self._under_way[account]:
                del self._under_way[account]

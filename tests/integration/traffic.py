"""Requests that never cease, and what became of each."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pillion.sdk import Pillion
from pillion.sdk.errors import PillionAPIError

from .site import ask, until


class Traffic:
    """What each model answered, counted: its text, the code of a refusal, or what else went wrong."""

    def __init__(self, client: Pillion) -> None:
        self._client = client
        self._ended = threading.Event()
        self.answers: dict[str, Counter[str]] = defaultdict(Counter)

    def total(self, model: str) -> int:
        return self.answers[model].total()

    def goes_on(self, *models: str, more: int = 20) -> None:
        """Wait for so many more answers of each."""
        before = {model: self.total(model) for model in models}
        for model, count in before.items():
            until(lambda m=model, c=count: self.total(m) >= c + more, f"answers of {model}")  # type: ignore[misc]

    def work(self, model: str) -> None:
        while not self._ended.is_set():
            try:
                said = ask(self._client, model)
            except PillionAPIError as error:
                said = str(error.code)
            except Exception as error:
                said = repr(error)
            self.answers[model][said] += 1

    def end(self) -> None:
        self._ended.set()


@contextmanager
def traffic(client: Pillion, models: Sequence[str], *, each: int = 2) -> Iterator[Traffic]:
    """`each` threads for every model."""
    made = Traffic(client)
    threads = [threading.Thread(target=made.work, args=(model,)) for model in models for _ in range(each)]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        made.end()
        for thread in threads:
            thread.join()

"""One page of metrics for all workers of a gateway: whichever is asked tells what the others count, too.

Behind one port a scrape reaches any of them. Each writes its numbers to a file every second; the page has them all,
with a label `worker`. Files, because a worker must not have to answer for the others to be seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

EVERY_S = 1.0
STALE_S = 10.0


class Siblings:
    """`name` is this worker's among those that share `directory`. `clock`: seconds since the epoch."""

    def __init__(self, directory: Path, name: str, clock: Callable[[], float]) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / f"{name}.prom"
        self._clock = clock

    async def run(self, text: Callable[[], bytes]) -> None:
        """Writes what `text` gives until cancelled, and takes it away then."""
        try:
            while True:
                try:
                    self.write(text())
                except OSError as error:
                    log.error("metrics not written for other workers", error=str(error))
                await asyncio.sleep(EVERY_S)
        finally:
            self._path.unlink(missing_ok=True)

    def write(self, text: bytes) -> None:
        """Whole or not at all. Raises `OSError`."""
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(text)
        partial.replace(self._path)

    def page(self, own: bytes) -> bytes:
        """All workers' numbers: `own` as it is now, the others' as last written. Those that are gone are left out.

        What is told is written first: no other worker tells less after this one.
        """
        self.write(own)
        texts = {self._path.stem: own}
        for path in self._path.parent.glob("*.prom"):
            try:
                if path != self._path and path.stat().st_mtime > self._clock() - STALE_S:
                    texts[path.stem] = path.read_bytes()
            except FileNotFoundError:
                continue
        return merged(dict(sorted(texts.items())))


def merged(texts: Mapping[str, bytes]) -> bytes:
    """Pages in Prometheus' text format as one, each sample with the label `worker`, families in one piece."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for worker, text in texts.items():
        for family, head, lines in _families(text.decode()):
            heads.setdefault(family, head)
            samples.setdefault(family, []).extend(_labelled(line, worker) for line in lines)
    return "".join(
        f"{line}\n" for family, head in heads.items() for line in (*head, *samples[family])
    ).encode()


def _families(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Name, comment lines and samples of each."""
    name, head, lines = "", list[str](), list[str]()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            if name:
                yield name, head, lines
            name, head, lines = line.split(" ", 3)[2], [line], []
        elif line.startswith("#"):
            head.append(line)
        elif line:
            lines.append(line)
    if name:
        yield name, head, lines


def _labelled(sample: str, worker: str) -> str:
    name, brace, rest = sample.partition("{")
    if brace and " " not in name:
        return f'{name}{{worker="{worker}",{rest}'
    name, _, value = sample.partition(" ")
    return f'{name}{{worker="{worker}"}} {value}'

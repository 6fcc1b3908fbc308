"""Usage on disk until control has it: one append-only log per gateway process, in segments.

What cannot be read, and is not the end of it all, is passed over to the next record that can: its sequences are missing
from then on, of which control is told.

An admission opens a request under a number of this log; what is
told closes it and has a sequence of its own. Sequences are given in the order of completion, so that what control
has is one number. What was open when a process died is told as lost by the next that opens the log.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import zlib
from collections import deque
from itertools import islice
from pathlib import Path

import msgspec
import structlog

from pillion.core.usage import Told, Used
from pillion.gateway.frames import FRAME, MAX_RECORD, records, rest
from pillion.gateway.records import Begun, Closed, Known, Opened, Record

log = structlog.get_logger(__name__)

SEGMENT_BYTES = 8 * 2**20
# What was told last is in memory too: control takes it from there, and from the files only where it is far behind.
AT_HAND = 20_000
_encode = msgspec.msgpack.Encoder().encode


class SpoolBusyError(Exception):
    """Another process has it."""


class SpoolFullError(Exception):
    """It holds as much as it may: control has not taken anything for long."""


class _Segment:
    """One file. `last`: the highest sequence told in it; `open`: how many requests that it opened are not closed."""

    __slots__ = ("last", "open", "path", "size")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.last = 0
        self.open = 0


class Syncing:
    """What is to be brought to the disk, up to the sequence `last`: `run` may block and belongs in a thread."""

    def __init__(self, file: int, last: int) -> None:
        self._file = os.dup(file)
        self.last = last

    def run(self) -> None:
        """Raises `OSError`."""
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)


class Spool:
    """One process's log. Raises `SpoolBusyError` where another process has it or has just removed it, `OSError`.

    Without `make` only a log that is there is opened: one that was emptied and removed must never begin anew, because
    control would take what it tells then for what it has already.
    """

    def __init__(self, directory: Path, max_bytes: int, *, make: bool = True) -> None:
        self.directory = directory
        self.damaged = 0  # places that could not be read
        self.id = directory.name
        self._max_bytes = max_bytes
        self._lock = _locked(directory, make)
        self._segments: list[_Segment] = []
        self._owners: dict[int, _Segment] = {}
        self._seq = self._number = self._oldest = 1
        self._file = -1
        self._pages: mmap.mmap | None = None
        self._bytes = 0
        self._synced = 0
        self._at_hand: deque[Told] = deque(maxlen=AT_HAND)
        self._read: tuple[_Segment | None, int, int] = (None, 0, 0)
        self._fresh = 0
        self._recover()

    @property
    def last(self) -> int:
        """The highest sequence told; 0 for none ever."""
        return int(self._seq) - 1

    @property
    def oldest(self) -> int:
        """The first sequence that is still here, or the next one."""
        return self._oldest

    def open(self, lost: Used) -> int:
        """Puts down an admission; its number. Raises `SpoolFullError`, `OSError`."""
        if self._bytes >= self._max_bytes:
            raise SpoolFullError(f"{self.directory} holds {self._bytes} bytes that control has not taken")
        number: int = self._number
        self._append(Opened(number, lost))
        self._number += 1
        segment = self._segments[-1]
        self._owners[number] = segment
        segment.open += 1
        return number

    def known(self, number: int, prompt: int | None, cached: int | None, completion: int | None) -> None:
        self._append(Known(number, prompt, cached, completion))

    def tell(self, told: Told, number: int = 0) -> None:
        """Puts down what is to be told, under the sequence after `last`, and closes `number`."""
        if told.seq != self._seq:
            told = msgspec.structs.replace(told, seq=self._seq)
        self._append(Closed(number, told))
        self._at_hand.append(told)
        self._told(number)

    def syncing(self) -> Syncing:
        return Syncing(self._file, self.last)

    def synced(self, done: Syncing) -> None:
        self._synced = max(self._synced, done.last)

    def after(self, seq: int, limit: int) -> list[Told]:
        """At most `limit` of what was told after `seq` and is on the disk, in order. Blocking, but short."""
        while self._at_hand and self._at_hand[0].seq <= seq:
            self._at_hand.popleft()
        if not self._at_hand or self._at_hand[0].seq != seq + 1:
            return self._from_files(seq, limit)
        return [told for told in islice(self._at_hand, limit) if told.seq <= self._synced]

    def overtake(self, mark: int) -> bool:
        """Whether control has more than was told before this process: the log is an older copy, or its end was damaged.
        What this process told would be taken for what control has: it is told once more. Raises `OSError`.
        """
        if mark < self._fresh:
            return False
        log.error("log of usage behind control", spool=self.id, first=self._fresh, control=mark)
        self._sync()
        again = [told for told in self.after(self._fresh - 1, self._seq) if told.seq <= mark]
        self._seq = max(self._seq, mark + 1)
        self._at_hand.clear()
        for told in again:
            self.tell(told)
        self._sync()
        return True

    def _from_files(self, seq: int, limit: int) -> list[Told]:
        """Without a gap: where sequences are missing, it ends before or begins after it."""
        found: list[Told] = []
        for segment in self._segments:
            if segment.last <= seq:
                continue
            at = self._read[1] if self._read[0] is segment and self._read[2] <= seq else 0
            for record, _, end in records(segment.path, segment.size, at):
                if not isinstance(record, Closed) or record.told.seq <= seq:
                    continue
                told = record.told.seq
                if told > self._synced or len(found) >= limit or (found and told != found[-1].seq + 1):
                    return found
                found.append(record.told)
                self._read = (segment, end, record.told.seq)
        return found

    def taken(self, seq: int) -> None:
        """Control has all up to `seq`: segments that only hold such go."""
        while len(self._segments) > 1:
            first = self._segments[0]
            if first.open or first.last > seq:
                return
            first.path.unlink()
            self._segments.pop(0)
            self._bytes -= first.size
            self._oldest = max(self._oldest, first.last + 1)

    def close(self) -> None:
        self._finish()
        os.close(self._lock)

    def remove(self) -> None:
        """For one whose every event is taken."""
        for segment in self._segments:
            segment.path.unlink(missing_ok=True)
        (self.directory / "lock").unlink(missing_ok=True)
        self.close()
        self.directory.rmdir()

    def _append(self, record: Record) -> None:
        """Into the file's pages: no call of the system, and there all the same if the process is killed right after."""
        payload = _encode(record)
        size = len(payload)
        if size > MAX_RECORD:
            raise OSError(f"{self.directory}: a record of {size} bytes is too long")
        segment = self._segments[-1]
        if segment.size >= SEGMENT_BYTES:
            segment = self._rotate()
        assert self._pages is not None
        start = segment.size
        at = start + FRAME.size
        FRAME.pack_into(self._pages, start, size, zlib.crc32(payload))
        self._pages[at : at + size] = payload
        segment.size = at + size
        self._bytes += FRAME.size + size

    def _told(self, number: int) -> None:
        segment = self._segments[-1]
        segment.last = self._seq
        self._seq += 1
        owner = self._owners.pop(number, None)
        if owner is not None:
            owner.open -= 1

    def _rotate(self) -> _Segment:
        """A new segment, whose room is taken from the disk at once: a page that finds none would end the process."""
        self._finish()
        if self._file >= 0:  # of one that found no room
            os.close(self._file)
            self._file = -1
        index = int(self._segments[-1].path.stem) + 1 if self._segments else 1
        segment = _Segment(self.directory / f"{index:08}.log")
        self._file = os.open(segment.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        room = SEGMENT_BYTES + FRAME.size + MAX_RECORD
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file, 0, room)
        else:
            os.ftruncate(self._file, room)
        self._pages = mmap.mmap(self._file, room)
        self._segments.append(segment)
        self._append(Begun(self._seq, self._number))
        return segment

    def _finish(self) -> None:
        """The last segment gets no more."""
        if self._pages is None:
            return
        os.fsync(self._file)
        self._pages.close()
        self._pages = None
        os.ftruncate(self._file, self._segments[-1].size)
        os.close(self._file)
        self._file = -1

    def _recover(self) -> None:
        """Reads what is there, cuts off a torn end, and tells what was open as lost."""
        lost: dict[int, Used] = {}
        first: int | None = None
        paths = sorted(self.directory.glob("*.log"))
        for path in paths:
            segment = _Segment(path)
            self._segments.append(segment)
            for record, start, end in records(path, path.stat().st_size):
                if start > segment.size:
                    self._damage(path, segment.size, start)
                segment.size = end
                if first is None and isinstance(record, Begun | Closed):
                    first = record.seq if isinstance(record, Begun) else record.told.seq
                self._recall(record, segment, lost)
            if path != paths[-1] and rest(path, segment.size):
                self._damage(path, segment.size, path.stat().st_size)
            # What control is told must be here after any end of the machine, or sequences would be given again.
            with path.open("rb+") as file:
                file.truncate(segment.size)
                os.fsync(file.fileno())
            self._bytes += segment.size
        self._oldest = self._seq if first is None else first
        self._fresh = self._seq
        self._rotate()
        for number, used in lost.items():
            self.tell(used, number)
        self._sync()

    def _recall(self, record: Record, segment: _Segment, lost: dict[int, Used]) -> None:
        """One that is there. `lost`: what is open after it."""
        if isinstance(record, Begun):
            self._seq, self._number = max(self._seq, record.seq), max(self._number, record.number)
        elif isinstance(record, Opened):
            lost[record.number] = record.lost
            self._owners[record.number] = segment
            segment.open += 1
            self._number = max(self._number, record.number + 1)
        elif isinstance(record, Known) and record.number in lost:
            lost[record.number] = msgspec.structs.replace(
                lost[record.number],
                prompt_tokens=record.prompt_tokens,
                cached_tokens=record.cached_tokens,
                completion_tokens=record.completion_tokens,
            )
        elif isinstance(record, Closed):
            lost.pop(record.number, None)
            segment.last = self._seq = record.told.seq
            self._seq += 1
            if (owner := self._owners.pop(record.number, None)) is not None:
                owner.open -= 1

    def _sync(self) -> None:
        done = self.syncing()
        done.run()
        self.synced(done)

    def _damage(self, path: Path, start: int, end: int) -> None:
        self.damaged += 1
        log.error("log of usage damaged: what is in there is lost", path=str(path), start=start, end=end)


def own_and_orphans(root: Path, max_bytes: int) -> tuple[Spool, list[Spool]]:
    """A log for this process, one that is there where nobody has it, and all others that nobody has. Raises `OSError`."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    free = []
    for path in sorted(root.iterdir()):
        try:
            free.append(Spool(path, max_bytes, make=False))
        except SpoolBusyError:
            continue
        except (NotADirectoryError, PermissionError) as error:
            log.error("no log of usage", path=str(path), error=str(error))
    if not free:
        return Spool(root / f"spool_{secrets.token_hex(8)}", max_bytes), []
    return free[0], free[1:]


def _locked(directory: Path, make: bool) -> int:
    """The descriptor that holds the log's lock. Raises `SpoolBusyError`, `OSError`."""
    path = directory / "lock"
    if make:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        lock = os.open(path, os.O_RDWR | (os.O_CREAT if make else 0), 0o600)
    except FileNotFoundError as error:
        raise SpoolBusyError(str(directory)) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had it may have removed it between the two.
        if os.fstat(lock).st_nlink == 0:
            raise FileNotFoundError(path)
    except OSError as error:
        os.close(lock)
        raise SpoolBusyError(str(directory)) from error
    return lock

"""How records lie in a file, each as `length, crc32, payload` (payload: msgpack), and how they are found there."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pillion.gateway.records import Record, decode

MAX_RECORD = 2**16
FRAME = struct.Struct("<II")


def records(path: Path, until: int, at: int = 0) -> Iterator[tuple[Record, int, int]]:
    """Each record from `at` to `until`, and from where to where it goes. What is none is passed over."""
    with path.open("rb") as file:
        while at + FRAME.size <= until:
            file.seek(at)
            head = file.read(FRAME.size)
            size, _ = FRAME.unpack(head)
            record, end = _read(head + file.read(min(size, MAX_RECORD)), 0, until - at)
            if record is None:
                found = _next(rest(path, at)[: until - at])
                if found is None:
                    return
                at += found
                continue
            yield record, at, at + end
            at += end


def _read(data: bytes, at: int, until: int) -> tuple[Record | None, int]:
    """The record that begins at `at`, if there is one, and where it ends."""
    if at + FRAME.size > until:
        return None, at
    size, crc = FRAME.unpack_from(data, at)
    end = at + FRAME.size + size
    if (
        not 0 < size <= MAX_RECORD
        or end > min(until, len(data))
        or zlib.crc32(data[at + FRAME.size : end]) != crc
    ):
        return None, at
    try:
        return decode(data[at + FRAME.size : end]), end
    except msgspec.MsgspecError:
        return None, at


def rest(path: Path, at: int) -> bytes:
    """What is behind `at`, without the zeros that a segment ends with before it is full."""
    with path.open("rb") as file:
        file.seek(at)
        return file.read().rstrip(b"\0")


def _next(data: bytes) -> int | None:
    """Where the first record behind the first byte begins."""
    for at in range(1, len(data)):
        if _read(data, at, len(data))[0] is not None:
            return at
    return None

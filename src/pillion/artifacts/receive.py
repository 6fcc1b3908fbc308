"""What came, verified and kept: the way of an adapter from an intake into the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from pillion.artifacts.archive import archive_kind, unpack
from pillion.artifacts.files import CHUNK, Written, too_large, write_synced
from pillion.artifacts.store import CONFIG, WEIGHTS, Intake
from pillion.core.adapters.bases import Base
from pillion.core.adapters.config import parse_config
from pillion.core.adapters.digest import version_digest
from pillion.core.adapters.findings import invalid
from pillion.core.adapters.formats import looks_like_safetensors
from pillion.core.adapters.header import HEAD, Header, Tensor, header_length, parse_header
from pillion.core.adapters.pairs import Pair
from pillion.core.adapters.verify import Limits, Verified, verify
from pillion.core.errors import AdapterInvalidError

T = TypeVar("T")
_ITEM = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Stored:
    """A version that is in the store. `size_bytes` is the weights file's."""

    digest: str
    size_bytes: int
    verified: Verified


async def receive(intake: Intake, config: bytes | None, base: Base, limits: Limits) -> Stored:
    """Verify what `intake` took, weights or an archive of a PEFT folder, and commit it to the store.

    `config` is an adapter_config.json sent apart; it goes before one in an archive. Raises
    `AdapterInvalidError` with every reason, or `AdapterTooLargeError`; then nothing is kept.
    """
    written = await intake.finish()
    ready = intake.directory / "ready"
    stored = await intake.run(lambda: _prepare(intake.upload, written, ready, config, base, limits))
    await intake.commit(ready, stored.digest)
    return stored


def read_header(path: Path) -> Header:
    """The header of a safetensors file. Raises `AdapterInvalidError`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = header_length(file.read(HEAD), size)
        file.seek(8)
        return parse_header(file.read(length), size)


def _prepare(
    upload: Path, written: Written, ready: Path, config: bytes | None, base: Base, limits: Limits
) -> Stored:
    """Fill `ready` with the version's two files, both on the disk."""
    ready.mkdir()
    weights = ready / WEIGHTS
    with upload.open("rb") as file:
        head = file.read(HEAD)
    kind = None if looks_like_safetensors(head) else archive_kind(head)
    if kind is None:
        upload.rename(weights)
    else:
        written, packed_config = unpack(upload, kind, weights, limits.max_bytes)
        config = packed_config if config is None else config
    if written.size > limits.max_bytes:
        raise too_large(limits.max_bytes)
    verified = _verify(weights, config, base, limits)
    if not effective(weights, verified.pairs):
        raise invalid(
            ["every lora_B (or its lora_A) is all zero: the adapter changes nothing; was it trained?"]
        )
    write_synced(ready / CONFIG, verified.config)
    return Stored(version_digest(written.sha256, verified.config), written.size, verified)


def _verify(weights: Path, config: bytes | None, base: Base, limits: Limits) -> Verified:
    """The file against the base; where file and config are both unreadable, the reasons of both."""
    reasons: list[str] = []
    header = _gather(lambda: read_header(weights), reasons)
    document = _gather(lambda: parse_config(config), reasons) if config is not None else None
    if header is None or reasons:
        raise invalid(reasons)
    return verify(header, document, base, limits)


def _gather(step: Callable[[], T], reasons: list[str]) -> T | None:
    try:
        return step()
    except AdapterInvalidError as error:
        reasons += error.reasons
        return None


def effective(weights: Path, pairs: Iterable[Pair]) -> bool:
    """Whether any module's A and B both have a value that is not zero. Reads no further than the first such
    pair."""
    with weights.open("rb") as file:
        return any(_nonzero(file, pair.b) and _nonzero(file, pair.a) for pair in pairs)


def _nonzero(file: IO[bytes], tensor: Tensor) -> bool:
    file.seek(tensor.offset)
    left, item = tensor.size, _ITEM[tensor.dtype]
    while left > 0:
        block = file.read(min(CHUNK, left))
        if not block:
            return False
        if _has_value(block, item):
            return True
        left -= len(block)
    return False


def _has_value(block: bytes, item: int) -> bool:
    """Whether little-endian floats of `item` bytes hold anything but zeros; minus zero is one."""
    if block.count(0) == len(block):
        return False
    signs = block[item - 1 :: item].strip(b"\0\x80")
    return bool(signs) or any(block[byte::item].strip(b"\0") for byte in range(item - 1))

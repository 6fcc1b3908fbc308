"""A PEFT folder in a `.zip` or `.tar.gz`: two files are taken out by content, nothing else is ever
written."""

from __future__ import annotations

import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from pillion.artifacts.files import CHUNK, HashingWriter, Written
from pillion.artifacts.store import CONFIG, WEIGHTS
from pillion.artifacts.streams import ForwardStream
from pillion.core.adapters.config import MAX_CONFIG
from pillion.core.adapters.findings import invalid, shown
from pillion.core.adapters.formats import SAFETENSORS_ONLY
from pillion.core.errors import AdapterInvalidError

MAX_ENTRIES = 1000
MAX_DIRECTORY = 2**20
MAX_EXTRA = 2**30
"""How much an archive may hold, unpacked, beside the weights: tokenizers, optimizer states and the like."""
MAX_CONFIGS = 4 * MAX_CONFIG
MAX_HEADERS = 2**16
"""Bytes of headers before one entry of a tar archive: all are kept while the next is read."""
MAX_FOR_ALL = 100
MAX_RATIO = 100
_RATIO_FROM = 2**24

Kind = Literal["zip", "gzip"]


def archive_kind(head: bytes) -> Kind | None:
    """Which archive a file is, by its first bytes."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    return "gzip" if head.startswith(b"\x1f\x8b") else None


def unpack(path: Path, kind: Kind, weights: Path, limit: int) -> tuple[Written, bytes | None]:
    """Write the archive's adapter_model.safetensors, at most `limit` bytes, to the new file `weights`.

    Returns what was written and the bytes of the adapter_config.json that lies beside it, if one does. Both
    are looked for at the top and one folder down. Raises `AdapterInvalidError` for anything unsafe anywhere
    in the archive, and `AdapterTooLargeError`.
    """
    with _malformed(kind):
        taken = _Taken(weights, limit)
        with path.open("rb") as file:
            if kind == "zip":
                _read_zip(file, taken)
            else:
                _read_tar(file, path.stat().st_size, taken)
        return taken.result()


class _Taken:
    """What was taken out so far, and what was seen on the way."""

    def __init__(self, weights: Path, limit: int) -> None:
        self.limit = limit
        self._path = weights
        self._written: Written | None = None
        self._folders: list[str] = []
        self._configs: dict[str, bytes] = {}
        self._entries = 0
        self._pickles: list[str] = []
        self._deep: list[str] = []

    def admit(self, name: str) -> str | None:
        """Check an entry's name; the file it is to us (`WEIGHTS` or `CONFIG`), or None. Raises for an unsafe
        one."""
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise invalid([f"the archive has more than {MAX_ENTRIES} entries"])
        parts = _safe_parts(name)
        last = parts[-1] if parts else ""
        if last.endswith((".pkl", ".bin", ".pt", ".pth")):
            self._pickles.append(name)
        if last not in (WEIGHTS, CONFIG):
            return None
        if len(parts) > 2:
            self._deep.append(name)
            return None
        return last

    def take(self, name: str, role: str, source: IO[bytes]) -> None:
        """Take one of the two files. Weights at the top go before those of folders beside them."""
        folder = "/".join(_safe_parts(name)[:-1])
        if role == CONFIG:
            self._take_config(name, folder, source)
            return
        if not folder and "" in self._folders:
            raise _several()
        self._folders.append(folder)
        if self._written is None or not folder:
            self._path.unlink(missing_ok=True)
            with HashingWriter(self._path, self.limit) as writer:
                while block := source.read(CHUNK):
                    writer.write(block)
                self._written = writer.finish()

    def _take_config(self, name: str, folder: str, source: IO[bytes]) -> None:
        if folder in self._configs:
            raise invalid([f"the archive has {shown(name)} twice"])
        self._configs[folder] = _read_small(source)
        if sum(map(len, self._configs.values())) > MAX_CONFIGS:
            raise invalid([f"the archive's {CONFIG} files are too large"])

    def result(self) -> tuple[Written, bytes | None]:
        if self._written is not None:
            if "" not in self._folders and len(self._folders) > 1:
                raise _several()
            return self._written, self._configs.get("" if "" in self._folders else self._folders[0])
        if self._pickles:
            raise invalid([f"the archive has no {WEIGHTS} but {shown(self._pickles[0])}; {SAFETENSORS_ONLY}"])
        if self._deep:
            raise invalid([f"{shown(self._deep[0])} lies too deep in the archive; at most one folder down"])
        raise invalid([f"the archive has no {WEIGHTS}"])


def _safe_parts(name: str) -> list[str]:
    """A name's parts. Backslashes count as separators: what reads the archive elsewhere may take them so."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        raise invalid([f"the archive has an absolute path: {shown(name)}"])
    if ".." in parts:
        raise invalid([f"the archive has a path that leaves it: {shown(name)}"])
    return parts


def _several() -> AdapterInvalidError:
    return invalid([f"the archive has more than one {WEIGHTS}; pack one adapter's folder"])


def _read_small(source: IO[bytes]) -> bytes:
    data = source.read(MAX_CONFIG + 1)
    if len(data) > MAX_CONFIG:
        raise invalid([f"{CONFIG} is larger than {MAX_CONFIG} bytes"])
    return data


def _read_zip(file: IO[bytes], taken: _Taken) -> None:
    _check_directory(file)
    with zipfile.ZipFile(file) as archive:
        entries = [(entry, taken.admit(entry.filename)) for entry in archive.infolist()]
        for entry, _ in entries:
            _check_zip_entry(entry)
        for entry, role in entries:
            if role is not None and not entry.is_dir():
                _check_ratio(entry.file_size, entry.compress_size)
                with archive.open(entry) as source:
                    taken.take(entry.filename, role, source)


def _check_zip_entry(entry: zipfile.ZipInfo) -> None:
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise invalid([f"the archive has a link or device: {shown(entry.filename)}"])
    if entry.flag_bits & 1:
        raise invalid([f"the archive is encrypted: {shown(entry.filename)}"])
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise invalid([f"{shown(entry.filename)} is packed with an uncommon method; use deflate"])


def _check_directory(file: IO[bytes]) -> None:
    """Bound the list of entries before zipfile reads it whole into memory."""
    size = file.seek(0, 2)
    # The longest comment, the record before it, and a zip64's before that.
    file.seek(max(0, size - 2**16 - 42))
    tail = file.read()
    plain = tail[-22:] if tail[-22:-18] == b"PK\x05\x06" and tail.endswith(b"\0\0") else None
    at = len(tail) - 22 if plain is not None else tail.rfind(b"PK\x05\x06")
    record = tail[at : at + 22]
    if at < 0 or len(record) < 22:
        raise invalid(["the zip archive is cut off: its list of entries is missing"])
    if tail[max(0, at - 20) : max(0, at - 16)] == b"PK\x06\x07":
        raise invalid(["the archive is a zip64 one; an adapter's folder needs none"])
    if int.from_bytes(record[10:12], "little") > MAX_ENTRIES:
        raise invalid([f"the archive has more than {MAX_ENTRIES} entries"])
    if int.from_bytes(record[12:16], "little") > MAX_DIRECTORY:
        raise invalid(["the zip archive's list of entries is too long"])
    file.seek(0)


def _read_tar(file: IO[bytes], packed: int, taken: _Taken) -> None:
    with gzip.GzipFile(fileobj=file) as unzipped:
        stream = ForwardStream(unzipped, lambda size: _check_unpacked(size, packed, taken.limit))
        stream.allow(MAX_HEADERS)
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # each has all that was said for all
                if len(archive.pax_headers) > MAX_FOR_ALL:
                    raise invalid([f"the archive has more than {MAX_FOR_ALL} headers for all its entries"])
                role = taken.admit(member.name)
                if not (member.isreg() or member.isdir()) or member.issparse():
                    raise invalid([f"the archive has a link, device or sparse file: {shown(member.name)}"])
                if role is not None and member.isreg():
                    source = archive.extractfile(member)
                    assert source is not None, "a regular file can be read"
                    stream.allow(member.size)
                    taken.take(member.name, role, source)
                stream.allow(MAX_HEADERS)


def _check_unpacked(size: int, packed: int, limit: int) -> None:
    if size > limit + MAX_EXTRA:
        raise invalid([f"the archive unpacks to more than {(limit + MAX_EXTRA) / 1e6:.0f} MB"])
    _check_ratio(size, packed)


def _check_ratio(size: int, packed: int) -> None:
    if size > _RATIO_FROM and size > MAX_RATIO * max(1, packed):
        raise invalid([f"the archive unpacks to more than {MAX_RATIO} times its size, as bombs do"])


@contextmanager
def _malformed(kind: Kind) -> Iterator[None]:
    """What the archive libraries raise on malformed input, as a reason."""
    try:
        yield
    except AdapterInvalidError:
        raise
    except tarfile.ReadError as error:
        raise invalid(
            [f"the file is {kind} data but no tar archive of an adapter's folder: {error}"]
        ) from error
    except _MALFORMED as error:
        raise invalid([f"the {kind} archive is damaged: {str(error)[:200]}"]) from error


_MALFORMED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    UnicodeError,
    ValueError,
    OverflowError,
    IndexError,
    struct.error,
)

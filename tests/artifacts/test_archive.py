"""Archives of a PEFT folder: the two files come out, nothing unsafe goes in, malformed ones are refused by
name."""

import gzip
import io
import os
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillion.artifacts import archive as archives
from pillion.artifacts.archive import archive_kind, unpack
from pillion.artifacts.receive import receive
from pillion.artifacts.store import ArtifactStore
from pillion.core.adapters.bases import Base
from pillion.core.adapters.verify import Limits
from pillion.core.errors import AdapterInvalidError, AdapterTooLargeError
from tests.adapter_files import config_bytes, weights
from tests.artifacts.conftest import everything

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LIMIT = 10_000_000
Files = dict[str, bytes]
Pack = Callable[[Files], bytes]


def as_zip(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name) if method == zipfile.ZIP_STORED else name, data)
    return buffer.getvalue()


def as_tar(files: Files, kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=kind) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, kind: bytes, target: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, target
        archive.addfile(entry)
    return buffer.getvalue()


def zip_link(name: str = WEIGHTS) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


def out(tmp_path: Path, data: bytes, limit: int = LIMIT) -> tuple[bytes, bytes | None]:
    """What `unpack` takes out of an archive with these bytes."""
    packed, target = tmp_path / "packed", tmp_path / "weights"
    packed.write_bytes(data)
    target.unlink(missing_ok=True)
    kind = archive_kind(data)
    assert kind is not None
    _, config = unpack(packed, kind, target, limit)
    return target.read_bytes(), config


def refused(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(AdapterInvalidError) as caught:
        out(tmp_path, data)
    assert sorted(p.name for p in tmp_path.rglob("*")) in (["packed"], ["packed", "weights"]), (
        "nothing else is written"
    )
    return " ".join(caught.value.reasons)


both = pytest.mark.parametrize("pack", [as_zip, as_tar])


@both
@pytest.mark.parametrize("folder", ["", "./", "my-adapter/", "./my-adapter/"])
def test_a_folder_comes_out(tmp_path: Path, pack: Pack, folder: str) -> None:
    extra = {f"{folder}README.md": b"hello", f"{folder}checkpoint-5/{WEIGHTS}": b"old", "__MACOSX/._x": b"m"}
    files = extra | {f"{folder}{CONFIG}": b"{}", f"{folder}{WEIGHTS}": b"W" * 3_000_000}
    assert out(tmp_path, pack(files)) == (b"W" * 3_000_000, b"{}")
    assert out(tmp_path, pack(dict(reversed(files.items())))) == (b"W" * 3_000_000, b"{}"), "in any order"


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_kind_of_tar(tmp_path: Path, kind: int) -> None:
    long = {} if kind == tarfile.USTAR_FORMAT else {"x" * 300 + "/y": b"long", "ünï": b"code"}
    assert out(tmp_path, as_tar(long | {WEIGHTS: b"W"}, kind)) == (b"W", None)


@both
def test_a_config_of_another_folder_is_not_taken(tmp_path: Path, pack: Pack) -> None:
    assert out(tmp_path, pack({f"a/{WEIGHTS}": b"W", f"b/{CONFIG}": b"{}"})) == (b"W", None)


@both
@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"/etc/passwd": b"", WEIGHTS: b"W"}, "absolute"),
        ({"C:\\x": b"", WEIGHTS: b"W"}, "absolute"),
        ({"\\\\host\\x": b"", WEIGHTS: b"W"}, "absolute"),
        ({f"../{WEIGHTS}": b"W"}, "leaves it"),
        ({f"a/../../{WEIGHTS}": b"W"}, "leaves it"),
        ({"..\\x": b"", WEIGHTS: b"W"}, "leaves it"),
        ({WEIGHTS: b"W", "a/..": b""}, "leaves it"),
        ({f"a/{WEIGHTS}": b"W", f"b/{WEIGHTS}": b"W"}, "more than one"),
        ({f"a/{WEIGHTS}": b"W", f"./a/{WEIGHTS}": b"W"}, "more than one"),
        ({WEIGHTS: b"W", f"./{WEIGHTS}": b"W"}, "more than one"),
        ({f"a/b/{WEIGHTS}": b"W"}, "too deep"),
        ({"archive/data.pkl": b"\x80\x02."}, "data.pkl"),
        ({"adapter_model.bin": b"PK"}, "adapter_model.bin"),
        ({"README": b""}, "has no adapter_model.safetensors"),
        ({}, "has no adapter_model.safetensors"),
        ({WEIGHTS: b"W", CONFIG: b" " * (2**20 + 1)}, "larger than"),
        ({f"{i}/{CONFIG}": b" " * 2**20 for i in range(6)}, "too large"),
        ({f"f{i}": b"" for i in range(1001)}, "more than 1000"),
    ],
)
def test_what_is_unsafe_or_missing_is_named(tmp_path: Path, pack: Pack, files: Files, word: str) -> None:
    assert word in refused(tmp_path, pack(files))


@pytest.mark.parametrize(
    "data",
    [
        member(WEIGHTS, tarfile.SYMTYPE, "/etc/passwd"),
        member("x", tarfile.SYMTYPE, "y"),
        member(WEIGHTS, tarfile.LNKTYPE, "/etc/passwd"),
        member("dev", tarfile.CHRTYPE),
        member("pipe", tarfile.FIFOTYPE),
        zip_link(),
        zip_link("elsewhere"),
    ],
    ids=["symlink", "symlink beside", "hard link", "device", "pipe", "zip symlink", "zip symlink beside"],
)
def test_links_and_devices_are_refused(tmp_path: Path, data: bytes) -> None:
    assert "link" in refused(tmp_path, data)


@both
def test_a_bomb_is_refused_early(tmp_path: Path, pack: Pack) -> None:
    with pytest.raises((AdapterInvalidError, AdapterTooLargeError)) as caught:
        out(tmp_path, pack({WEIGHTS: b"\0" * 40_000_000}), limit=10**9)
    assert "times its size" in str(caught.value)
    written = tmp_path / "weights"
    assert not written.exists() or written.stat().st_size < 20_000_000


@both
def test_too_large_weights_are_refused_while_unpacking(tmp_path: Path, pack: Pack) -> None:
    with pytest.raises(AdapterTooLargeError):
        out(tmp_path, pack({WEIGHTS: b"ab" * 1_000_000}), limit=1_999_999)
    assert (tmp_path / "weights").stat().st_size <= 2_000_000


def test_a_tar_that_unpacks_to_too_much_beside_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_EXTRA", 1000)
    assert "unpacks to more than" in refused(
        tmp_path, as_tar({"optimizer": b"x" * (LIMIT + 20_000), WEIGHTS: b"W"})
    )


def test_a_tar_header_that_asks_for_much_memory(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("pax")
    entry.type, entry.size = tarfile.XHDTYPE, 7 * 2**30
    data = gzip.compress(entry.tobuf(tarfile.USTAR_FORMAT) + b"\0" * 4096)
    assert "too long" in refused(tmp_path, data)


def chained(kind: bytes, count: int, size: int) -> bytes:
    """A tar whose one file has so many headers before it, each with so many bytes that do not pack well."""
    raw = bytearray()
    for number in range(count):
        record = b"%d k%05d=" % (size, number)
        record += os.urandom(size).hex().encode()[: size - len(record) - 1] + b"\n"
        entry = tarfile.TarInfo("x")
        entry.type, entry.size = kind, len(record)
        raw += entry.tobuf(tarfile.USTAR_FORMAT) + record + b"\0" * (-len(record) % 512)
    return gzip.compress(bytes(raw) + gzip.decompress(as_tar({WEIGHTS: b"W"})), 1)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_tar_of_headers_before_headers(tmp_path: Path, kind: bytes) -> None:
    """Each is kept while the next is read: they would take all the memory there is, or the stack."""
    data = chained(kind, 16, 2**20)
    tracemalloc.start()
    assert "headers" in refused(tmp_path, data)
    assert tracemalloc.get_traced_memory()[1] < 12 * 2**20
    tracemalloc.stop()
    assert "headers" in refused(tmp_path, chained(kind, 2000, 600))


def test_a_zip_whose_list_of_entries_is_too_long(tmp_path: Path) -> None:
    data = bytearray(as_zip({WEIGHTS: b"W"}))
    data[-10:-6] = (2**30).to_bytes(4, "little")
    assert "too long" in refused(tmp_path, bytes(data))
    assert "zip64" in refused(
        tmp_path, as_zip({WEIGHTS: b"W"})[:-22] + b"PK\x06\x07" + b"\0" * 16 + data[-22:]
    )


def test_a_zip64_whose_list_of_entries_hides_behind_a_long_comment(tmp_path: Path) -> None:
    """It would be read whole, into memory: as long as the file."""
    count, local = 2000, struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, *[0] * 7, 1, 0) + b"a"
    listed = (struct.pack("<4s4B4H3L5H2L", b"PK\x01\x02", 20, 0, 20, *[0] * 8, 1, *[0] * 6) + b"a") * count
    at = len(local) + len(listed)
    packed = local + listed
    packed += struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(listed), len(local)
    )
    packed += struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    for comment in (2**16 - 1, 2**16 - 10, 2**16 - 20, 2**16 - 21, 2**16 - 22, 100):
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 47, 0, comment)
        assert "zip64" in refused(tmp_path, packed + end + b"\1" * comment), comment


def test_uncommon_packing_and_encryption_are_refused(tmp_path: Path) -> None:
    assert "uncommon" in refused(tmp_path, as_zip({WEIGHTS: b"W"}, zipfile.ZIP_LZMA))
    data = bytearray(as_zip({WEIGHTS: b"W"}, zipfile.ZIP_STORED))
    data[6] |= 1
    data[data.find(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in refused(tmp_path, bytes(data))


def test_a_compressed_file_that_is_no_archive(tmp_path: Path) -> None:
    assert "no tar archive" in refused(tmp_path, gzip.compress(b"just weights" * 100))


@both
async def test_an_archive_becomes_a_version(store: ArtifactStore, tiny: Base, pack: Pack) -> None:
    digests = set()
    for data, config in (
        (pack({f"a/{WEIGHTS}": weights(), f"a/{CONFIG}": config_bytes()}), None),
        (pack({WEIGHTS: weights(), CONFIG: b"not json"}), config_bytes()),
        (weights(), config_bytes()),
    ):
        async with store.intake(LIMIT) as intake:
            await intake.write(data)
            digests.add((await receive(intake, config, tiny, Limits())).digest)
    assert len(digests) == 1
    assert len(everything(store)) == 2


SAMPLE = {f"a/{WEIGHTS}": b"W" * 300, CONFIG: b"{}"}
SAMPLES = [as_zip(SAMPLE), as_tar(SAMPLE)]
SAMPLES.append(gzip.decompress(SAMPLES[1])[:4096])


@settings(max_examples=300)
@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4),
    st.data(),
)
def test_damaged_archives_raise_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, changes: list[tuple[int, int]], more: st.DataObject
) -> None:
    spoilt = bytearray(data)
    for position, value in changes:
        spoilt[position % len(spoilt)] = value
    end = more.draw(st.integers(len(spoilt) // 2, len(spoilt)))
    packed = bytes(spoilt[:end])
    if data is SAMPLES[2]:
        packed = gzip.compress(packed)
    if archive_kind(packed) is not None:
        folder = tmp_path_factory.mktemp("fuzz")
        with suppress(AdapterInvalidError, AdapterTooLargeError):
            out(folder, packed)

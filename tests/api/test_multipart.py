"""Uploads are read the same however the network cuts them, in bounded memory, and what is malformed is refused."""

import itertools
import tracemalloc
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillion.api.multipart import MAX_FIELD, MAX_PARTS, read_form
from pillion.core.errors import InvalidRequestError, RequestTooLargeError

BOUNDARY = "x-bound"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def part(name: str, data: bytes, filename: str | None = None) -> bytes:
    file = f'; filename="{filename}"' if filename is not None else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + data + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


async def stream(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def cut(data: bytes, at: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({min(edge, len(data)) for edge in at}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


async def read(chunks: Iterable[bytes], content_type: str = TYPE) -> tuple[dict[str, str], dict[str, bytes]]:
    """The fields, and what the sinks `file` and `config` were given."""
    files: dict[str, bytearray] = {"file": bytearray(), "config": bytearray()}

    async def to_file(chunk: bytes) -> None:
        files["file"] += chunk

    async def to_config(chunk: bytes) -> None:
        files["config"] += chunk

    fields = await read_form(content_type, stream(chunks), {"file": to_file, "config": to_config})
    return fields, {name: bytes(data) for name, data in files.items()}


TRICKY = b"\r\n--x-boun\r\n--x-bound-not\r\r\n\n--\x00\xff--x-bound\r\n\r\n-"
WHOLE = body(
    part("name", "mine ü".encode()),
    part("file", TRICKY, "a.safetensors"),
    part("empty", b""),
    part("config", b"{}", "c.json"),
)


async def test_parts_go_where_they_belong() -> None:
    fields, files = await read([WHOLE])
    assert fields == {"name": "mine ü", "empty": ""}
    assert files == {"file": TRICKY, "config": b"{}"}


async def test_byte_by_byte_is_the_same() -> None:
    assert await read(bytes([byte]) for byte in WHOLE) == await read([WHOLE])


@settings(deadline=None)
@given(st.lists(st.integers(min_value=0, max_value=len(WHOLE)), max_size=30))
async def test_however_it_is_cut_it_is_the_same(at: list[int]) -> None:
    assert await read(cut(WHOLE, at)) == ({"name": "mine ü", "empty": ""}, {"file": TRICKY, "config": b"{}"})


@settings(deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(min_value=0, max_value=400), max_size=5))
async def test_any_bytes_arrive_whole(data: bytes, at: list[int]) -> None:
    if f"\r\n--{BOUNDARY}".encode() in b"\r\n" + data:
        return
    _, files = await read(cut(body(part("file", data)), at))
    assert files["file"] == data


@settings(deadline=None)
@given(
    st.binary(max_size=300) | st.binary(max_size=60).map(lambda junk: part("file", b"x")[:40] + junk),
    st.text(max_size=30) | st.just(TYPE),
)
async def test_no_bytes_and_no_content_type_raise_anything_else(data: bytes, content_type: str) -> None:
    with suppress(InvalidRequestError, RequestTooLargeError):
        await read([data], content_type)


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=" + "x" * 300,
        "multipart/mixed; boundary=x-bound",
        "application/x-www-form-urlencoded",
    ],
)
async def test_what_is_no_multipart_form_is_refused(content_type: str) -> None:
    with pytest.raises(InvalidRequestError, match="multipart"):
        await read([WHOLE], content_type)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        WHOLE[:-4],
        WHOLE[: len(WHOLE) // 2],
        part("name", b"x"),
        body(part("name", b"x"))[:-6],
        b"--other\r\n\r\n",
        body(part("file", b"1"), part("file", b"2")),
        body(part("name", b"1"), part("name", b"2")),
        body(part("", b"1")),
        body(b"--x-bound\r\n\r\nno headers\r\n"),
        body(b"--x-bound\r\nContent-Disposition: attachment\r\n\r\nno name\r\n"),
        body(b"--x-bound\r\nbad header\r\n\r\nx\r\n"),
        body(*(part(f"f{n}", b"") for n in range(MAX_PARTS + 1))),
        body(part("name", b"\xff\xfe")),
    ],
)
async def test_what_is_malformed_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        await read([data] if data else [])


async def test_as_many_parts_as_are_allowed() -> None:
    fields, _ = await read([body(*(part(f"f{n}", b"1") for n in range(MAX_PARTS)))])
    assert len(fields) == MAX_PARTS


async def test_a_field_has_a_limit() -> None:
    fields, _ = await read([body(part("name", b"x" * MAX_FIELD))])
    assert len(fields["name"]) == MAX_FIELD
    with pytest.raises(RequestTooLargeError, match="'name' is over 1 MiB"):
        await read([body(part("name", b"x" * (MAX_FIELD + 1)))])


@pytest.mark.parametrize(
    "endless", [b"--x-bound\r\nX-Long: ", b"--x-bound\r\n" + b"X: y\r\n" * 20, b"--x-bound\r\n"]
)
async def test_headers_without_end_are_refused_before_they_fill_the_memory(endless: bytes) -> None:
    taken = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal taken
        yield endless
        while True:
            taken += 4096
            assert taken < 1 << 20, "a megabyte of header was taken"
            yield b"y" * 4096

    with pytest.raises(InvalidRequestError):
        await read_form(TYPE, chunks(), {})


async def test_a_large_file_is_not_held_in_memory() -> None:
    taken = 0

    async def count(chunk: bytes) -> None:
        nonlocal taken
        taken += len(chunk)

    async def chunks() -> AsyncIterator[bytes]:
        yield part("file", b"")[:-2]
        for _ in range(1000):
            yield b"\r\n--" * 16384
        yield b"\r\n" + body()

    tracemalloc.start()
    try:
        await read_form(TYPE, chunks(), {"file": count})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken == 1000 * 65536
    assert peak < 4 << 20


async def test_what_comes_after_the_end_is_no_part() -> None:
    fields, _ = await read([body(part("name", b"x")) + part("late", b"y")])
    assert fields == {"name": "x"}


async def test_a_sink_that_refuses_ends_the_reading() -> None:
    async def refuse(chunk: bytes) -> None:
        raise RequestTooLargeError("too much")

    async def chunks() -> AsyncIterator[bytes]:
        yield part("file", b"x" * 100)
        raise AssertionError("it went on reading")

    with pytest.raises(RequestTooLargeError):
        await read_form(TYPE, chunks(), {"file": refuse})

"""Requests as bytes: each known way to smuggle one past a server, and the parser under every way to cut packets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from itertools import pairwise

import h11
import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.gateway.wire import Heads, Malformed, Reader
from tests.gateway.conftest import Town
from tests.gateway.site import Engine, Site
from tests.gateway.world import BASE

LIMIT = 2048
Request = tuple[str, str, str, tuple[tuple[str, str], ...], bytes]

ATTACKS = {
    "two lengths": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    "two lengths alike": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5, 5\r\n\r\nhello",
    "CL.TE": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nG",
    "TE.CL": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
    "a signed length": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +5\r\n\r\nhello",
    "a negative length": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    "a hex length": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0x5\r\n\r\nhello",
    "an empty length": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: \r\n\r\n",
    "an underscore in a length": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1_0\r\n\r\n0123456789",
    "a length beyond 64 bits": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 18446744073709551621\r\n\r\nhello",
    "digits of another script": "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: ٥\r\n\r\nhello".encode(),
    "two codings": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: x\r\n\r\n0\r\n\r\n",
    "chunked twice": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "another coding": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: identity\r\n\r\n",
    "xchunked": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a quoted coding": b'POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "a vertical tab in the coding": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "TE in HTTP/1.0": b"POST / HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a blank before the colon": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    "a tab before the colon": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length\t: 5\r\n\r\nhello",
    "a blank before the name": b"POST / HTTP/1.1\r\nhost: x\r\n content-length: 5\r\n\r\nhello",
    "folding": b"GET / HTTP/1.1\r\nhost: x\r\nx-a: 1\r\n\tb\r\n\r\n",
    "folding of the first field": b"GET / HTTP/1.1\r\n host: x\r\n\r\n",
    "bare LF after the request line": b"GET / HTTP/1.1\nhost: x\r\n\r\n",
    "bare LF after a field": b"GET / HTTP/1.1\r\nhost: x\nx-a: 1\r\n\r\n",
    "bare LF at the end": b"GET / HTTP/1.1\r\nhost: x\r\n\n",
    "bare LF everywhere": b"GET / HTTP/1.1\nhost: x\n\n",
    "bare CR in a value": b"GET / HTTP/1.1\r\nhost: x\r\nx-a: 1\rx-b: 2\r\n\r\n",
    "CR CR LF": b"GET / HTTP/1.1\r\nhost: x\r\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\nhost: x\r\nx-a: 1\x002\r\n\r\n",
    "NUL in a name": b"GET / HTTP/1.1\r\nhost: x\r\nx\x00a: 1\r\n\r\n",
    "a control character": b"GET / HTTP/1.1\r\nhost: x\r\nx-a: \x7f\r\n\r\n",
    "no name": b"GET / HTTP/1.1\r\nhost: x\r\n: 1\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nhost: x\r\nnonsense\r\n\r\n",
    "a name that is no token": b"GET / HTTP/1.1\r\nhost: x\r\nx(a): 1\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\nx-a: 1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
    "two hosts in one": b"GET / HTTP/1.1\r\nhost: x, y\r\n\r\n",
    "a path in the host": b"GET / HTTP/1.1\r\nhost: x/y\r\n\r\n",
    "absolute form": b"GET http://evil/ HTTP/1.1\r\nhost: x\r\n\r\n",
    "authority form": b"CONNECT evil:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    "asterisk form": b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    "a fragment": b"GET /a#b HTTP/1.1\r\nhost: x\r\n\r\n",
    "a blank in the target": b"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n",
    "a tab for a blank": b"GET\t/ HTTP/1.1\r\nhost: x\r\n\r\n",
    "two blanks": b"GET  / HTTP/1.1\r\nhost: x\r\n\r\n",
    "bytes over ASCII in the target": b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
    "no version": b"GET /\r\nhost: x\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nhost: x\r\n\r\n",
    "HTTP/1.10": b"GET / HTTP/1.10\r\nhost: x\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nhost: x\r\n\r\n",
    "lower case version": b"GET / http/1.1\r\nhost: x\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a method that is no token": b"G@T / HTTP/1.1\r\nhost: x\r\n\r\n",
    "two empty lines before": b"\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "another expectation": b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 200-ok\r\ncontent-length: 1\r\n\r\nx",
    "a head too large": b"GET / HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * LIMIT + b"\r\n\r\n",
}  # fmt: skip
CHUNKED = b"POST /v1/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
BAD_CHUNKS = {
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "no hex": b"g\r\nhello\r\n0\r\n\r\n",
    "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "signed": b"+5\r\nhello\r\n0\r\n\r\n",
    "negative": b"-5\r\nhello\r\n0\r\n\r\n",
    "a blank before": b" 5\r\nhello\r\n0\r\n\r\n",
    "a blank after": b"5 \r\nhello\r\n0\r\n\r\n",
    "beyond 64 bits": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "bare LF after the size": b"5\nhello\r\n0\r\n\r\n",
    "bare CR after the size": b"5\rhello\r\n0\r\n\r\n",
    "bare LF in an extension": b"5;a\nbb\r\nhello\r\n0\r\n\r\n",
    "bare CR in an extension": b"5;a\rbb\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;\x00\r\nhello\r\n0\r\n\r\n",
    "a large extension": b"5;" + b"a" * 300 + b"\r\nhello\r\n0\r\n\r\n",
    "longer than it says": b"5\r\nhello!\r\n0\r\n\r\n",
    "shorter than it says": b"6\r\nhello\r\n0\r\n\r\n",
    "bare LF after the data": b"5\r\nhello\n0\r\n\r\n",
    "no line ending after the data": b"5\r\nhello0\r\n\r\n",
    "a bad trailer": b"0\r\nx y: 1\r\n\r\n",
    "folding in the trailers": b"0\r\nx: 1\r\n y\r\n\r\n",
    "bare LF in the trailers": b"0\r\nx: 1\n\r\n\r\n",
    "large trailers": b"0\r\nx: " + b"a" * 9000 + b"\r\n\r\n",
}


def read(data: bytes, cuts: list[int]) -> tuple[list[Request], int]:
    """The requests in these bytes, and the status they end with: 0 where more may come."""
    reader = Reader(Heads(), LIMIT)
    found: list[Request] = []
    edges = [0, *sorted(cuts), len(data)]
    requests = _requests(reader, found)
    try:
        for a, b in pairwise(edges):
            reader.feed(data[a:b])
            next(requests)
    except Malformed as error:
        return found, error.status
    return found, 0


def _requests(reader: Reader, found: list[Request]) -> Iterator[None]:
    while True:
        while (head := reader.head()) is None:
            yield
        body = b""
        while not reader.whole:
            part = reader.body()
            body += part
            if not part and not reader.whole:
                yield
        found.append((head.method, head.path, head.query, tuple(head.fields), body))


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused(attack: str) -> None:
    for cuts in ([], list(range(len(ATTACKS[attack])))):
        found, status = read(ATTACKS[attack], cuts)
        assert (found, status) == ([], {"a head too large": 431, "another expectation": 417}.get(attack, 400))


@pytest.mark.parametrize("chunks", BAD_CHUNKS)
def test_bad_chunks_are_refused(chunks: str) -> None:
    data = CHUNKED + BAD_CHUNKS[chunks]
    assert read(data, []) == read(data, list(range(len(data)))) == ([], 400)


def test_what_is_unusual_and_fine() -> None:
    for raw, body in (
        (b"POST / HTTP/1.1\r\nHOST:x\r\nContent-Length:\t5 \r\n\r\nhello", b"hello"),
        (b"\r\nPOST /?a=?b HTTP/1.1\r\nhost: [::1]:80\r\ncontent-length: 005\r\n\r\nhello", b"hello"),
        (CHUNKED + b"5;a=b\r\nhello\r\n00a\r\n0123456789\r\n000\r\nx-t: 1\r\n\r\n", b"hello0123456789"),
        (b"GET / HTTP/1.0\r\n\r\n", b""),
    ):
        found, status = read(raw, [])
        assert status == 0
        assert [request[4] for request in found] == [body]


def test_a_known_head_with_another_length_is_that_head() -> None:
    heads, seen = Heads(), []
    for body in (b"12345", b"1234567890", b""):
        head, length = heads.read(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
        assert length == len(body)
        seen.append(head)
    assert seen[0] is seen[1] is seen[2]
    for bad in (b"", b"-1", b"5, 5", b"5\r\ncontent-length: 5"):
        with pytest.raises(Malformed):
            heads.read(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %b\r\n\r\n" % bad)


PIECES = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n", b"POST /v1/x?y=z HTTP/1.1\r\n", b"HEAD /a HTTP/1.0\r\n", b"host: x\r\n", b"\r\n", b"\n",
        b"\r", b" ", b"\t", b"\x00", b":", b"content-length: 5\r\n", b"Content-Length: 12\r\n", b"content-length: 0\r\n",
        b"transfer-encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"connection: close\r\n", b"hello",
        b"5\r\nhello\r\n", b"0\r\n\r\n", b"5;x\r\n", b"c\r\nhello, world\r\n", b"x-a: b\r\n", b"0\r\nx: y\r\n\r\n", b",",
    ]
)  # fmt: skip
WHOLE = st.sampled_from(
    [
        b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello",
        b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"1;a\r\nx\r\n2\r\nyz\r\n0\r\nt: 1\r\n\r\n",
    ]
)
STREAM = st.lists(WHOLE | PIECES | st.binary(max_size=6), max_size=12).map(b"".join)


@given(STREAM, st.lists(st.integers(0, 400), max_size=12))
def test_cut_anywhere_it_is_the_same(data: bytes, cuts: list[int]) -> None:
    cuts = [min(cut, len(data)) for cut in cuts]
    assert read(data, cuts) == read(data, [])


@given(STREAM)
def test_what_is_taken_means_the_same_to_other_parsers(data: bytes) -> None:
    """Whatever gets through here, h11 and llhttp read as these very requests."""
    found, status = read(data, [])
    if not found or data.startswith(b"\r\n"):
        return
    theirs = _by_h11(data, len(found))
    assert theirs[: len(found)] == [(method, fields, body) for method, _, _, fields, body in found]
    if status == 0:
        # It stops where it knows no such method, and after `connection: close`.
        theirs_too = _by_llhttp(data)
        assert theirs_too == [(method, body) for method, _, _, _, body in found][: len(theirs_too)]


def _by_h11(data: bytes, count: int) -> list[tuple[str, tuple[tuple[str, str], ...], bytes]]:
    found = []
    rest = data
    for _ in range(count):
        # A connection each: h11 stops between requests that nobody answers.
        peer = h11.Connection(h11.SERVER)
        peer.receive_data(rest)
        event = peer.next_event()
        assert isinstance(event, h11.Request)
        read = ((n.decode(), v.decode("latin-1")) for n, v in event.headers)
        fields = tuple(field for field in read if field[0] != "content-length")
        body = b""
        while isinstance(event := peer.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        found.append((_method(rest), fields, body))
        rest = peer.trailing_data[0].removeprefix(b"\r\n")
    return found


def _method(rest: bytes) -> str:
    return rest.split(b" ", 1)[0].decode()


def _by_llhttp(data: bytes) -> list[tuple[str, bytes]]:
    class Sink:
        def __init__(self) -> None:
            self.found: list[tuple[str, bytes]] = []
            self.body = b""

        def on_message_begin(self) -> None:
            self.body = b""

        def on_body(self, part: bytes) -> None:
            self.body += part

        def on_message_complete(self) -> None:
            self.found.append((parser.get_method().decode(), self.body))

    sink = Sink()
    parser = httptools.HttpRequestParser(sink)
    with contextlib.suppress(httptools.HttpParserError):
        parser.feed_data(data)
    return sink.found


async def exchange(site: Site, data: bytes) -> bytes:
    host, port = site.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "attack", ["CL.TE", "two lengths", "bare LF after a field", "a blank before the colon"]
)
async def test_on_the_wire_an_attack_is_answered_once_and_the_connection_closed(
    town: Town, attack: str
) -> None:
    follow_up = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    answer = await exchange(town.site, ATTACKS[attack] + follow_up)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_what_goes_to_an_engine_is_one_request(town: Town) -> None:
    """Nothing in a body, in a chunk or in a trailer becomes a request of its own."""
    await town.only(town.a)
    inner = b"POST /v1/load_lora_adapter HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
    body = b'{"model":"%s","messages":[{"role":"user","content":"hi"}]}' % BASE.encode() + b" " * 20
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n" % town.key.encode()
    )
    chunked = (
        head
        + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\nx-t: 1\r\n\r\n"
        % (len(body), body)
    )
    answer = await exchange(town.site, chunked + inner)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert paths(town.a) == ["/v1/chat/completions"]
    assert "transfer-encoding" not in town.a.headers


def paths(engine: Engine) -> list[str]:
    return [request.path for request, _ in engine.asked]


async def test_pipelined_requests_are_answered_in_order(town: Town) -> None:
    ask = b"GET /v1/models/m%d HTTP/1.1\r\nhost: x\r\nx-request-id: r%d\r\nauthorization: Bearer %b\r\n%b\r\n"
    data = b"".join(ask % (n, n, town.key.encode(), b"connection: close\r\n" * (n == 9)) for n in range(10))
    answer = await exchange(town.site, data)
    assert [line[-2:] for line in answer.split(b"\r\n") if line.startswith(b"x-request-id")] == [
        b"r%d" % n for n in range(10)
    ]


async def test_http_1_0_gets_no_chunks(town: Town) -> None:
    body = b'{"model":"%s","messages":[],"stream":true}' % BASE.encode()
    head = b"POST /v1/chat/completions HTTP/1.0\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n\r\n"
    answer = await exchange(town.site, head % (town.key.encode(), len(body)) + body)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"chunked" not in answer
    assert answer.endswith(b"\n\ndata: [DONE]\n\n")

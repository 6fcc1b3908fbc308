"""Answers of upstream that come in one piece: known by their head, or left to the parser."""

from __future__ import annotations

import pytest

from pillion.gateway.replies import MAX_KNOWN_BYTES, ReplyHeads

USUAL = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-type:  application/json \r\nContent-Length: %d\r\nx: y\r\n\r\n%b"


def test_usual_answers_are_read_once() -> None:
    heads = ReplyHeads()
    for body in (b"{}", b"", b"x" * 1000):
        found = heads.whole(USUAL % (len(body), body))
        assert found is not None
        head, rest = found
        assert rest == body
        assert head.status == 200
        assert [name for name, _ in head.fields] == [b"server", b"content-type", b"x"]
        assert head.fields[1][1] == b"application/json"
        first = heads.whole(USUAL % (1, b"1"))
        assert first is not None
        assert first[0] is head


@pytest.mark.parametrize(
    "answer",
    [
        USUAL % (3, b"{}"),
        USUAL % (1, b"{}"),
        (USUAL % (2, b"{}"))[:-1],
        (USUAL % (2, b"{}"))[:40],
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n folded\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nbad\nline: 1\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nno colon\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nlong: " + b"x" * MAX_KNOWN_BYTES + b"\r\ncontent-length: 2\r\n\r\n{}",
    ],
)
def test_all_else_is_the_parsers(answer: bytes) -> None:
    heads = ReplyHeads()
    assert heads.whole(answer) is None
    assert heads.whole(answer) is None  # nor is it known then


def test_many_heads_do_not_pile_up() -> None:
    heads = ReplyHeads()
    for number in range(5000):
        assert heads.whole(b"HTTP/1.1 200 OK\r\nx: %d\r\ncontent-length: 2\r\n\r\n{}" % number) is not None
    assert len(heads._known) <= 1024

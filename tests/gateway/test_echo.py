"""The client's `model` in answers, as tables and under every way to cut a stream."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.gateway.echo import Echo, EventEcho
from pillion.gateway.faults import EngineError, Scrub

NAME = "adp_00000000000000000001@" + "ab" * 32
ECHO = Echo(NAME, "ft1:1")


def events() -> EventEcho:
    return EventEcho(ECHO, Scrub(NAME, "ft1:1"), limit=10_000)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"model": NAME, "x": 1.10}, {"model": "ft1:1", "x": 1.10}),
        ({"model": "another-name"}, {"model": "ft1:1"}),
        ({"response": {"model": NAME}}, {"response": {"model": "ft1:1"}}),
        ({"response": {"model": "another-name"}}, {"response": {"model": "ft1:1"}}),
        ({"metadata": {"model": "mine"}}, {"metadata": {"model": "mine"}}),
        ({"content": f'"model":"{NAME}"'}, {"content": f'"model":"{NAME}"'}),
        ({"content": f'\\"model\\": "{NAME}'}, {"content": f'\\"model\\": "{NAME}'}),
        (["model", NAME], ["model", NAME]),
        ({"a": "model", "b": None}, {"a": "model", "b": None}),
    ],
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" , ", " : ")])
def test_json(before: object, after: object, separators: tuple[str, str]) -> None:
    assert json.loads(ECHO.json(json.dumps(before, separators=separators).encode())) == after


def test_numbers_are_not_printed_anew() -> None:
    text = b'{"model":"%s","logprob":-0.10000000000000000555,"big":12345678901234567890123}' % NAME.encode()
    assert ECHO.json(text) == text.replace(NAME.encode(), b"ft1:1")


@pytest.mark.parametrize("text", [b"", b'not json "model"', b'{"model":', b'"model"'])
def test_what_is_no_json_stays(text: bytes) -> None:
    assert ECHO.json(text) == text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_ending(end: str) -> None:
    raw = f'event: x{end}data: {{"model": "{NAME}"}}{end}{end}data: [DONE]{end}{end}'.encode()
    rewriter = events()
    assert (
        rewriter.feed(raw)
        == f'event: x{end}data: {{"model":"ft1:1"}}{end}{end}data: [DONE]{end}{end}'.encode()
    )
    assert rewriter.done


def test_last_event_without_its_blank_line() -> None:
    rewriter = events()
    assert rewriter.feed(b"data: [DONE]\n") == b""
    assert rewriter.end() == b"data: [DONE]\n\n\n"
    assert rewriter.done


def test_an_endless_event_is_given_up() -> None:
    rewriter = events()
    assert all(rewriter.feed(b"x" * 1000) == b"" for _ in range(10))
    with pytest.raises(EngineError):
        rewriter.feed(b"x")


STREAM = b"".join(
    b"data: " + json.dumps({"model": NAME, "choices": [{"text": text}]}).encode() + b"\n\n"
    for text in ("a", "\n\n", "é", f'{{"model": "{NAME}"}}', "data: [DONE]")
) + b"data: [DONE]\n\n"  # fmt: skip


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_cut_anywhere_it_is_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    rewriter = events()
    out = b"".join(rewriter.feed(STREAM[a:b]) for a, b in pairwise(edges)) + rewriter.end()
    assert out == events().feed(STREAM)
    assert rewriter.done
    assert out.count(b'"model":"ft1:1"') == 5
    texts = [json.loads(e[6:])["choices"][0]["text"] for e in out.split(b"\n\n")[:-2]]
    assert texts == ["a", "\n\n", "é", f'{{"model": "{NAME}"}}', "data: [DONE]"]

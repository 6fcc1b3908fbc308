"""The client's `model` in answers, as tables and under every way to cut a stream."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.gateway.echo import DONE, RESPONSE_DONE, Echo, EventEcho
from pillion.gateway.faults import EngineError, Scrub
from pillion.gateway.tokens import Wanted

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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('data:{"model":"NAME"}\n\n', 'data: {"model":"ft1:1"}\n\n'),
        ('data: {"a": 1,\ndata: "model":\ndata: "NAME"}\n\n', 'data: {"a": 1, "model":"ft1:1"}\n\n'),
        (': x\r\nid: 1\r\ndata: {\r\ndata: "model":"NAME"}\r\n\r\n', ': x\r\nid: 1\r\ndata: { "model":"ft1:1"}\r\n\r\n'),
        ("data: no\ndata: \"model\"\n\n", 'data: no\ndata: "model"\n\n'),
        ('data: {"model":"NAME"}\n\r\ndata: 1\r\n\n', 'data: {"model":"ft1:1"}\n\r\ndata: 1\r\n\n'),
        (': "model" is a comment\n\n', ': "model" is a comment\n\n'),
        ('data: {"tool_calls":[{"arguments":"{\\"model\\":\\"NAME\\"}"}]}\n\n', None),
        ('data: {"x":{"model":"mine"},"y":[{"model":{"type":"string"}}]}\n\n', None),
        ('data: {"content":"model","delta":"\\"model\\":"}\n\n', None),
        ('data: {"x":{"model":"mine"},"model":"NAME"}\n\n', 'data: {"x":{"model":"mine"},"model":"ft1:1"}\n\n'),
        ('data: {"x":{"model":"mine"},"model":"other"}\n\n', 'data: {"x":{"model":"mine"},"model":"ft1:1"}\n\n'),
    ],
)  # fmt: skip
def test_events_of_every_form_however_they_are_cut(text: str, expected: str | None) -> None:
    raw = text.replace("NAME", NAME).encode()
    wanted = raw if expected is None else expected.encode()
    for cut in range(len(raw)):
        rewriter = events()
        assert rewriter.feed(raw[:cut]) + rewriter.feed(raw[cut:]) == wanted
    rewriter = events()
    assert b"".join(rewriter.feed(raw[at : at + 1]) for at in range(len(raw))) == wanted
    assert not rewriter.done


PARTS = [
    f'"model":"{NAME}"', '"model":"other"', '"id":"x"', '"id":"y"', '"usage":{"prompt_tokens":1,"completion_tokens":2}',
    '"usage":null', '"usage": {"prompt_tokens":3}', '"my_usage":{"prompt_tokens":4}', '"choices":[{"delta":{}}]',
    '"choices":[]', '"usage":{"prompt_tokens":7',
    '"choices":[{"delta":{"content":"\\"model\\":\\"usage\\":{"}}]', '"error":{"message":"no"}',
    '"error":null', '"models":1', '"x":{"usage":{"prompt_tokens":5}}', '"x":{"model":"mine"}', '"x":"}{,"',
    '"usage":{"prompt_tokens":6,"prompt_tokens_details":{"cached_tokens":1}}',
]  # fmt: skip
ENDS = ["\n\n", "\r\n\r\n", "\n \n\n", "\n: x\n\n"]


@given(
    st.lists(st.tuples(st.lists(st.sampled_from(PARTS), max_size=5), st.sampled_from(ENDS)), max_size=6),
    st.sampled_from(Wanted),
)
def test_an_event_comes_out_as_alone_however_those_before_it_began(
    sent: list[tuple[list[str], str]], wanted: Wanted
) -> None:
    stream = EventEcho(ECHO, Scrub(NAME, "ft1:1"), 10_000, wanted)
    for parts, end in [(PARTS[:3], ENDS[0]), *sent, *sent, (PARTS[:1], ENDS[0])]:
        alone = EventEcho(ECHO, Scrub(NAME, "ft1:1"), 10_000, wanted)
        event = f"data: {{{','.join(parts)}}}{end}".encode()
        counted = stream.tokens.counted
        assert stream.feed(event) == alone.feed(event)
        assert stream.tokens.counted == (
            counted if alone.tokens.counted == (None, None, None) else alone.tokens.counted
        )


def test_a_client_with_quotes_in_its_model_gets_them_back() -> None:
    echo = Echo(NAME, 'a"\\é')
    assert json.loads(echo.json(b'{"model":"%s"}' % NAME.encode())) == {"model": 'a"\\é'}


@pytest.mark.parametrize(
    ("text", "ends", "done"),
    [
        ("data: [DONE]\n\n", DONE, True),
        ("data:[DONE]\r\n\r\n", DONE, True),
        ("event: end\ndata: [DONE]\n\n", DONE, True),
        ("data: [DONE]\n\n: a comment\n\n", DONE, True),
        ("data: [DONE] it is not\n\n", DONE, False),
        ('data: {"x":"data: [DONE]"}\n\n', DONE, False),
        ('event: response.completed\ndata: {"type":"response.completed"}\n\n', RESPONSE_DONE, True),
        ('data: {"type":"response.incomplete","response":{}}\n\n', RESPONSE_DONE, True),
        ('data: {"type": "response.failed"}\n\n', RESPONSE_DONE, True),
        ('data: {"type":"response.text.done","text":"\\"type\\":\\"response.completed\\""}\n\n', RESPONSE_DONE, False),
        ("data: [DONE]\n\n", RESPONSE_DONE, True),
    ],
)  # fmt: skip
def test_what_ends_a_whole_stream(text: str, ends: re.Pattern[bytes], done: bool) -> None:
    rewriter = EventEcho(ECHO, Scrub(NAME, "ft1:1"), 10_000, ends=ends)
    assert rewriter.feed(text.encode()) == text.encode()
    assert rewriter.done == done


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

"""Requests that are forms: read strictly, rewritten only where they must be, and relayed like any other."""

from __future__ import annotations

import asyncio
import email.parser
import email.policy
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from pillion.core.errors import InvalidRequestError
from pillion.gateway.form import MAX_PART_HEAD, MAX_PARTS, MAX_VALUE, Form, boundary_of, usage_asked
from pillion.gateway.http import Head
from pillion.gateway.tokens import Wanted
from tests.gateway.conftest import Town
from tests.gateway.site import open_stream
from tests.gateway.world import BASE, make_instance, make_replica

PATH = "/v1/audio/transcriptions"
Part = tuple[str, bytes, bool]


def part(name: str, value: bytes = b"x", more: str = "") -> bytes:
    return f'Content-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value


MODEL = part("model", b"m")
FILE = part("file", b"\x00\xff\r\n--\r\n", '; filename="a b.wav"\r\nContent-Type: audio/wav')


def body(*parts: bytes, boundary: bytes = b"B") -> bytes:
    return b"".join(b"--%b\r\n%b\r\n" % (boundary, one) for one in parts) + b"--%b--\r\n" % boundary


def read(raw: bytes, boundary: bytes = b"B", step: int = 2**30) -> Form:
    form = Form(boundary)
    for at in range(0, len(raw), step):
        form.feed(raw[at : at + step])
    return form


def as_others_read(raw: bytes, boundary: bytes) -> list[tuple[str, bytes]]:
    """By the standard library: names and bytes."""
    head = b'content-type: multipart/form-data; boundary="%b"\r\n\r\n' % boundary
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + raw)
    found: Any = message.get_payload()
    return [
        (one.get_param("name", header="content-disposition"), one.get_payload(decode=True)) for one in found
    ]


BOUNDARIES = st.from_regex(rb"[0-9A-Za-z'()+_,./:=?-]{1,70}", fullmatch=True)
NAMES = st.sampled_from(["file", "prompt", "language", "timestamp_granularities[]", "temperature"])


@st.composite
def forms(draw: st.DrawFn) -> tuple[bytes, list[Part]]:
    """A boundary, and parts that it does not cut: one of them is the model."""
    boundary = draw(BOUNDARIES)
    hostile = st.sampled_from(
        [b"--", b"\r", b"\n", b"\r\n", boundary[:-1], b"--" + boundary[:-1], b"\x00\xff"]
    )
    content = st.lists(hostile | st.binary(max_size=40), max_size=8).map(b"".join)
    found: list[Part] = []
    for _ in range(draw(st.integers(0, 4))):
        is_file = draw(st.booleans())
        value = draw(content) if is_file else draw(st.text(max_size=20)).encode()
        found.append((draw(NAMES), value.replace(b"--" + boundary, b""), is_file))
    found.insert(draw(st.integers(0, len(found))), ("model", b"tiny", False))
    return boundary, [one for one in found if b"--" + boundary not in one[1]]


def printed(boundary: bytes, parts: list[Part]) -> bytes:
    raw = [part(n, v, '; filename="f.bin"\r\nContent-Type: application/x' if f else "") for n, v, f in parts]
    return body(*raw, boundary=boundary)


@given(forms(), st.integers(1, 50))
def test_however_it_is_cut_only_the_model_changes(made: tuple[bytes, list[Part]], step: int) -> None:
    boundary, parts = made
    raw = printed(boundary, parts)
    form = read(raw, boundary, step)
    document, model = form.end()
    assert model == "tiny"
    assert {n.partition("[")[0] for n, _, _ in parts} == document.keys()
    name = "adp_1@" + "0" * 64
    asked = form.encode({"model": name, "cache_salt": "salt"})
    rest = printed(boundary, [one for one in parts if one[0] != "model"])
    assert (
        asked
        == body(part("model", name.encode()), part("cache_salt", b"salt"), boundary=boundary)[
            : -len(boundary) - 6
        ]
        + rest
    )
    assert form.encode({"model": name, "cache_salt": "salt"}) == asked


@given(forms(), st.data())
def test_what_is_cut_short_is_no_form(made: tuple[bytes, list[Part]], data: st.DataObject) -> None:
    boundary, parts = made
    raw = printed(boundary, parts)
    end = data.draw(st.integers(0, len(raw) - 3))
    with pytest.raises(InvalidRequestError):
        read(raw[:end], boundary).end()


@given(
    st.lists(
        st.sampled_from([b"--B", b"--", b"\r\n", b"\n", b"\r", b"B", b";", MODEL, FILE, b"\x00", b" "]),
        max_size=14,
    )
)
def test_what_is_taken_has_one_model_for_others_too(pieces: list[bytes]) -> None:
    raw = b"--B\r\n" + b"".join(pieces) + b"\r\n--B--"
    try:
        form = read(raw)
        form.end()
    except InvalidRequestError:
        return
    models = [value for name, value in as_others_read(form.encode({"model": "e"}), b"B") if name == "model"]
    assert models == [b"e"]


ATTACKS = {
    "empty": b"",
    "no boundary": b'{"model":"m"}',
    "another boundary": body(MODEL, boundary=b"C"),
    "before it": b"x\r\n" + body(MODEL),
    "after it": body(MODEL) + body(part("model", b"evil")),
    "no end": body(MODEL)[:-4],
    "no model": body(FILE),
    "empty model": body(part("model", b"")),
    "no parts": b"--B--\r\n",
    "model is a file": body(part("model", b"m", '; filename="m"')),
    "model is a file by its other name": body(part("model", b"m", "; filename*=utf-8''m")),
    "model twice": body(MODEL, part("model", b"evil")),
    "model twice around a file": body(MODEL, FILE, part("model", b"evil")),
    "model as a list too": body(MODEL, part("model[]", b"evil")),
    "model is not utf-8": body(part("model", b"\xff\xfe")),
    "two names": body(part("file", b"m", '; name="model"')),
    "two names, one bare": body(part("file", b"m", "; name=model"), MODEL),
    "an encoded name": body(part("x", b"m", "; name*=utf-8''model"), MODEL),
    "a continued name": body(part("x", b"m", '; name*0="mo"; name*1="del"'), MODEL),
    "a quote in the file's name": body(part("x", b"m", '; filename="a\\"; name=\\"model"'), MODEL),
    "a backslash in the file's name": body(part("x", b"m", '; filename="a\\\\"'), MODEL),
    "two dispositions": body(part("x", b"m", '\r\ncontent-disposition: form-data; name="model"'), MODEL),
    "no disposition": body(b"Content-Type: text/plain\r\n\r\nx", MODEL),
    "no headers": body(b"\r\nx", MODEL),
    "another disposition": body(b'Content-Disposition: attachment; name="x"\r\n\r\nx', MODEL),
    "folded": body(b'Content-Disposition: form-data;\r\n name="x"\r\n\r\nx', MODEL),
    "bare newlines": body(MODEL).replace(b"\r\n", b"\n"),
    "a bare newline in a head": body(part("x", b"m", "\nfoo: bar"), MODEL),
    "a boundary after a bare newline": body(
        part("x", b'\n--B\r\nContent-Disposition: form-data; name="model"\r\n\r\ne'), MODEL
    ),
    "a boundary after a bare return": body(part("x", b"a\r--B\r\n"), MODEL),
    "a boundary right after a head": b"--B\r\n" + part("x", b"") + b"--B\r\n" + MODEL + b"\r\n--B--",
    "a longer boundary": body(part("x", b"a\r\n--BC\r\nmore"), MODEL),
    "a boundary with blanks": body(part("x", b"a\r\n--B \r\n" + MODEL)),
    "base64": body(part("model", b"bQ==", "\r\nContent-Transfer-Encoding: base64")),
    "a huge head": b"--B\r\n" + part("x", b"", "\r\nx: " + "y" * MAX_PART_HEAD),
    "a huge model": body(part("model", b"m" * (MAX_VALUE + 1))),
    "a huge field that does not end": b"--B\r\n" + part("model", b"m" * (MAX_VALUE + 99)),
    "many parts": body(*[part("x")] * MAX_PARTS, MODEL),
}


@pytest.mark.parametrize("raw", ATTACKS.values(), ids=ATTACKS.keys())
@pytest.mark.parametrize("step", [1, 2**30])
def test_attacks(raw: bytes, step: int) -> None:
    if len(raw) > 2**17 and step == 1:
        step = 997
    with pytest.raises(InvalidRequestError):
        read(raw, step=step).end()


GOOD = {
    "as curl prints it": body(FILE, MODEL),
    "as .NET prints it": body(
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=model\r\n\r\nm",
        part("file", b"x", "; filename=a.wav; filename*=utf-8''a.wav"),
    ),
    "without a last line end": body(MODEL)[:-2],
    "an empty field": body(part("prompt", b""), MODEL),
    "the boundary within a line": body(part("x", b"a--B--B"), MODEL),
    "a list": body(part("include[]"), part("include[]"), MODEL),
    "lengths": body(part("model", b"m", "\r\nContent-Length: 1")),
}


@pytest.mark.parametrize("raw", GOOD.values(), ids=GOOD.keys())
def test_what_clients_print(raw: bytes) -> None:
    assert read(raw, step=1).end()[1] == "m"


@pytest.mark.parametrize(
    ("kind", "boundary"),
    [
        ("multipart/form-data; boundary=a-b", b"a-b"),
        ('Multipart/Form-Data;boundary="a b"; charset=utf-8', b"a b"),
        ("application/json", None),
    ],
)
def test_boundaries(kind: str, boundary: bytes | None) -> None:
    assert boundary_of(Head("POST", PATH, "", [("content-type", kind)])) == boundary


@pytest.mark.parametrize(
    "kinds",
    [
        ["multipart/form-data"],
        ["multipart/form-data; boundary="],
        ["multipart/form-data; boundary=" + "b" * 71],
        ["multipart/form-data; boundary=a; boundary=b"],
        ["multipart/form-data; boundary=a; charset=utf-16"],
        ['multipart/form-data; boundary="a\\"b"'],
        ["multipart/form-data; boundary=a", "multipart/form-data; boundary=b"],
        ["multipart/mixed; boundary=a"],
        ["application/json, multipart/form-data; boundary=a"],
    ],
)
def test_no_boundary(kinds: list[str]) -> None:
    with pytest.raises(InvalidRequestError, match="boundary"):
        boundary_of(Head("POST", PATH, "", [("content-type", kind) for kind in kinds]))


@pytest.mark.parametrize(
    ("fields", "asked", "wanted"),
    [
        ({}, False, Wanted.AS_IT_IS),
        ({"stream": "False"}, False, Wanted.AS_IT_IS),
        ({"stream": "true"}, True, Wanted.NOTHING),
        ({"stream": "1", "stream_include_usage": "true"}, True, Wanted.AT_THE_END),
    ],
)
def test_streams_are_counted(fields: dict[str, str], asked: bool, wanted: Wanted) -> None:
    document = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()}
    extra, found = usage_asked(PATH, document)
    assert (bool(extra), found) == (asked, wanted)


# Through the gateway


def sound(
    model: str | None, *, last: bool = True, data: bytes = b"RIFF" * 50_000, **fields: str
) -> aiohttp.FormData:
    form = aiohttp.FormData()
    if model is not None and not last:
        form.add_field("model", model)
    form.add_field("file", data, filename="sound.wav", content_type="audio/wav")
    for name, value in fields.items():
        form.add_field(name, value)
    if model is not None and last:
        form.add_field("model", model)
    return form


async def heard(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    usage = {"type": "tokens", "input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
    return web.json_response({"text": "hello", "usage": usage})


async def ask(town: Town, form: Any, **more: Any) -> tuple[int, dict[str, Any]]:
    fields = {"authorization": f"Bearer {town.key}"} | more.pop("headers", {})
    async with town.site.client.post(town.site.url + PATH, data=form, headers=fields, **more) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize("last", [True, False])
async def test_a_file_goes_to_its_adapter(town: Town, last: bool) -> None:
    await town.only(town.a)
    town.a.behave = heard
    status, answer = await ask(town, sound("ft1:1", last=last, language="en", stream="false"))
    assert (status, answer["text"]) == (200, "hello")
    got = town.a.body
    assert got["model"] == town.adapter.engine_name
    assert (got["language"], got["stream"]) == ("en", "false")
    assert got["file"] == ("sound.wav", "audio/wav", b"RIFF" * 50_000)


async def test_it_may_come_in_chunks_and_move(town: Town) -> None:
    """The first replica refuses; the second gets all of it."""
    await town.publish(
        town.entry,
        make_instance(1, make_replica("gone"), make_replica("gone too"), make_replica("a", url=town.a.url)),
    )
    town.a.behave = heard
    raw = body(FILE, part("model", BASE.encode()))

    async def slowly() -> Any:
        for at in range(0, len(raw), 7):
            yield raw[at : at + 7]

    for _ in range(6):
        status, _ = await ask(town, slowly(), headers={"content-type": "multipart/form-data; boundary=B"})
        assert status == 200
        assert town.a.body["model"] == f"served/{BASE}"
        assert town.a.body["file"][2] == b"\x00\xff\r\n--\r\n"


@pytest.mark.parametrize(
    ("form", "param", "words"),
    [
        (sound(None), "model", "must have a field 'model'"),
        (sound("ft1:1", last=False, lora_path="/etc"), "lora_path", "not allowed"),
        (sound("ft1:1", image_url="http://inside/"), "messages", "Media by URL"),
        (body(MODEL, MODEL), "model", "twice"),
        (b"{}", None, "does not begin with its boundary"),
    ],
)
async def test_refusals(town: Town, form: Any, param: str | None, words: str) -> None:
    raw = isinstance(form, bytes)
    headers = {"content-type": "multipart/form-data; boundary=B"} if raw else {}
    status, answer = await ask(town, form, headers=headers)
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "invalid_request", param)
    assert words in answer["error"]["message"]
    assert not town.a.asked
    assert not town.b.asked


async def test_what_is_no_form_is_refused_before_it_has_come(town: Town) -> None:
    refused = asyncio.Event()

    async def endless() -> Any:
        yield b"no boundary at all"
        await refused.wait()

    status, answer = await ask(town, endless(), headers={"content-type": "multipart/form-data; boundary=B"})
    assert (status, answer["error"]["code"]) == (400, "invalid_request")
    refused.set()


async def test_forms_have_the_same_limit(town: Town) -> None:
    status, answer = await ask(town, sound("ft1:1", data=b"x" * (32 * 2**20)))
    assert (status, answer["error"]["code"]) == (413, "request_too_large")


async def test_an_account_without_the_model_gets_404(town: Town) -> None:
    status, answer = await ask(town, sound("ft1:2"))
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_a_stream_tells_its_usage_and_none_of_it_is_shown(town: Town) -> None:
    async def streamed(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await open_stream(request)
        shown = {
            "object": "transcription.chunk",
            "model": body["model"],
            "choices": [{"delta": {"content": "hi"}}],
        }
        usage = {"usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}}
        for event in (shown | usage, shown | usage | {"choices": []}):
            await response.write(b"data: " + msgspec.json.encode(event) + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    await town.only(town.a)
    town.a.behave = streamed
    fields = {"authorization": f"Bearer {town.key}"}
    async with town.site.client.post(
        town.site.url + PATH, data=sound("ft1:1", stream="true"), headers=fields
    ) as answer:
        text = await answer.text()
    assert town.a.body["stream_include_usage"] == "true"
    assert "usage" not in text
    assert text.count("data: ") == 2
    assert '"model":"ft1:1"' in text


async def test_on_pools_it_is_salted(town: Town) -> None:
    await town.publish(town.entry, make_instance(9, make_replica("a", url=town.a.url), account=None))
    town.a.behave = heard
    salts = []
    for own in ("", "mine", "mine"):
        assert (await ask(town, sound(BASE, **({"cache_salt": own} if own else {}))))[0] == 200
        salts.append(town.a.body["cache_salt"])
    assert len(set(salts)) == 2
    assert "mine" not in salts

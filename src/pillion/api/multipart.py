"""Multipart uploads, streamed: parts go where they belong as they arrive, nothing is held in memory or spooled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pillion.core.errors import InvalidRequestError, RequestTooLargeError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELD = 1 << 20
MAX_PARTS = 16


@dataclass
class _Part:
    name: str = ""
    filename: str | None = None
    headers: dict[bytes, bytes] = field(default_factory=dict)


class _Events:
    """The parser's callbacks, turned into a list that is emptied after every chunk."""

    def __init__(self) -> None:
        self.out: list[tuple[str, _Part, bytes]] = []
        self.ended = False
        self._part = _Part()
        self._field, self._value = b"", b""

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finished,
        }

    def _begin(self) -> None:
        self._part = _Part()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._part.headers[self._field.lower()] = self._value
        self._field, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._part.headers.get(b"content-disposition", b""))
        self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        self._part.filename = None if filename is None else filename.decode("utf-8", "replace")
        self.out.append(("begin", self._part, b""))

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.out.append(("data", self._part, data[start:end]))

    def _end(self) -> None:
        self.out.append(("end", self._part, b""))

    def _finished(self) -> None:
        self.ended = True


async def read_form(
    content_type: str,
    body: AsyncIterator[bytes],
    sinks: dict[str, Callable[[bytes], Awaitable[None]]],
) -> dict[str, str]:
    """The form's text fields; parts named in `sinks` are passed there in chunks as they arrive.

    Raises `InvalidRequestError` for what is not multipart/form-data, ends early or has a part twice, and
    `RequestTooLargeError` for a text field over 1 MiB.
    """
    events = _Events()
    parser = _parser(content_type, events)
    fields: dict[str, bytearray] = {}
    seen: set[str] = set()
    async for chunk in body:
        try:
            parser.write(chunk)
        except Exception as error:
            raise InvalidRequestError(f"the multipart body is malformed: {error}") from error
        for event, part, data in events.out:
            if event == "begin":
                await _open(part, seen, fields, sinks)
            elif event == "data" and part.name in sinks:
                await sinks[part.name](data)
            elif event == "data":
                fields[part.name] += data
                if len(fields[part.name]) > MAX_FIELD:
                    raise RequestTooLargeError(f"field {part.name!r} is over 1 MiB.", param=part.name)
        events.out.clear()
    if not events.ended:
        raise InvalidRequestError("the multipart body ends early; nothing was stored.")
    return {name: _text(name, value) for name, value in fields.items()}


def _parser(content_type: str, events: _Events) -> MultipartParser:
    kind, options = parse_options_header(content_type.encode())
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidRequestError("send multipart/form-data with the parts named in the documentation.")
    try:
        return MultipartParser(options[b"boundary"], events.callbacks())
    except FormParserError as error:
        raise InvalidRequestError(f"the multipart boundary cannot be used: {error}") from error


async def _open(
    part: _Part,
    seen: set[str],
    fields: dict[str, bytearray],
    sinks: dict[str, Callable[[bytes], Awaitable[None]]],
) -> None:
    if not part.name or part.name in seen or len(seen) == MAX_PARTS:
        raise InvalidRequestError(
            f"part {part.name!r} has no name, comes twice, or is one too many.", param=part.name
        )
    seen.add(part.name)
    if part.name not in sinks:
        fields[part.name] = bytearray()
    elif part.filename:
        await sinks[part.name](b"")  # an empty file is one, too; a browser's empty choice has no name


def _text(name: str, value: bytearray) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"field {name!r} is not UTF-8 text.", param=name) from error

"""What a request asks: its body, as the client sends it and as an engine gets it."""

from __future__ import annotations

import functools

import msgspec

from pillion.core.errors import InvalidRequestError, RequestTooLargeError
from pillion.gateway.body import (
    BodyPolicy,
    Document,
    ask_for_usage,
    cache_salt,
    encode,
    may_hold_urls,
    read_document,
)
from pillion.gateway.form import Form, usage_asked
from pillion.gateway.plans import Plan
from pillion.gateway.tokens import Wanted


class Question:
    """A JSON document, or a `form` with files. `max_body`: bytes that it may have."""

    __slots__ = (
        "_extra",
        "_form",
        "_max_body",
        "_parts",
        "_policy",
        "_size",
        "document",
        "model",
        "path",
        "wanted",
    )

    def __init__(self, path: str, form: Form | None, policy: BodyPolicy, max_body: int) -> None:
        self.path = path
        self.document: Document = {}
        self.model = ""
        self.wanted = Wanted.AS_IT_IS
        self._form = form
        self._policy = policy
        self._max_body = max_body
        self._extra: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Raises `PillionError`."""
        self._size += len(data)
        if self._size > self._max_body:
            raise too_large(self._max_body)
        if self._form is None:
            self._parts.append(data)
        else:
            self._form.feed(data)

    def read(self) -> None:
        """Once it is whole. Raises `PillionError`."""
        if self._form is not None:
            document, self.model = self._form.end()
            self.document = self._policy.apply(self.path, document)
            self._extra, self.wanted = usage_asked(self.path, document)
            return
        raw = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        document, self.model = read_document(raw)
        self.document = self._policy.apply(self.path, document, may_hold_urls=may_hold_urls(raw))
        self.wanted = ask_for_usage(self.path, self.document)

    @property
    def has_files(self) -> bool:
        return self._form is not None

    @property
    def text_size(self) -> int:
        """Bytes of all that is not in files."""
        return self._size if self._form is None else self._form.text_size

    def encode(self, plan: Plan, salt: msgspec.Raw | None) -> bytes:
        """For the plan's engine."""
        if self._form is None:
            return encode(self.document, plan.name, salt)
        values = {"model": plan.route.upstream_model(plan.candidate), **self._extra}
        return self._form.encode(
            values if salt is None else values | {"cache_salt": msgspec.json.decode(salt, type=str)}
        )

    def salt(self, pepper: bytes, account: str) -> msgspec.Raw:
        """What keeps one account's cached prompts from another's requests."""
        own = self.document.get("cache_salt")
        return _salt_of(pepper, account, None if own is None else bytes(own))


@functools.lru_cache(4096)
def _salt_of(pepper: bytes, account: str, own: bytes | None) -> msgspec.Raw:
    try:
        value = None if own is None else msgspec.json.decode(own)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise InvalidRequestError("The field 'cache_salt' is not valid JSON.", param="cache_salt") from None
    return msgspec.Raw(msgspec.json.encode(cache_salt(pepper, account, value)))


def too_large(limit: int) -> RequestTooLargeError:
    return RequestTooLargeError(f"The body is larger than {limit} bytes.")

"""An engine's refusals and failures, as a client may see them: in OpenAI's shape, without the engine's own names."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from pillion.core.errors import (
    InvalidRequestError,
    NotFoundError,
    PillionError,
    RequestTooLargeError,
    UnavailableError,
)

MAX_MESSAGE = 2000
_ENGINE_NAME = re.compile(r"adp_[a-z0-9]{20}@[0-9a-f]{6,64}")
_URL = re.compile(r"\b(?:https?|tcp|ipc|file)://[^\s'\"<>)]+")
_PATH = re.compile(r"(?<![\w:/.])/(?:[\w.@+-]+/)+[\w.@+-]*")


class EngineError(PillionError):
    """The engine has the request and failed at it."""

    status, code, type = 500, "engine_error", "api_error"


class StreamBrokenError(PillionError):
    """A stream that had begun could not be finished."""

    status, code, type = 500, "stream_broken", "api_error"


class Scrub:
    """Puts the client's `model` for the engine's name of it, and takes out paths and addresses."""

    def __init__(self, upstream: str, echo: str) -> None:
        self._upstream = upstream
        self._echo = echo

    def message(self, text: str) -> str:
        # A short name may be a part of a word: only a whole one is the model's.
        text = re.sub(
            rf"(?<![\w.-]){re.escape(self._upstream)}(?![\w.-]*\w)", lambda _: self._echo, text[:MAX_MESSAGE]
        )
        text = _ENGINE_NAME.sub(lambda _: self._echo, text)
        return _PATH.sub("[path]", _URL.sub("[address]", text))

    def error(self, status: int, document: Any) -> PillionError:
        """The error for an engine's answer of `status` with this JSON (None where it was none).

        What the client got wrong is told to it; what broke inside the engine is not.
        """
        text = self.message(_message_of(document) or f"The engine refused the request with status {status}.")
        if status in (408, 429, 503):
            return UnavailableError(
                "The engine takes no more requests now. Try again shortly.", retry_after=2.0
            )
        if status >= 500 or status < 400:
            return EngineError(
                "The engine failed at this request. Try again; if it stays so, tell the operator."
            )
        param = _param_of(document)
        if status in (404, 405):
            return NotFoundError(text, param=param)
        return RequestTooLargeError(text) if status == 413 else InvalidRequestError(text, param=param)


def parse_error(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def error_event(error: PillionError) -> bytes:
    """The last event of a stream that failed (SPEC §5)."""
    return b"data: " + msgspec.json.encode(error.body()) + b"\n\n"


def _message_of(document: Any) -> str | None:
    """`{"error": {"message"}}`, `{"error": "…"}`, `{"message"}`, or FastAPI's `{"detail"}`."""
    if not isinstance(document, dict):
        return None
    error = document.get("error", document)
    if isinstance(error, dict):
        error = error.get("message", error.get("detail"))
    if isinstance(error, list):
        error = "; ".join(str(item.get("msg", "")) for item in error if isinstance(item, dict))
    return error if isinstance(error, str) and error else None


def _param_of(document: Any) -> str | None:
    error = document.get("error") if isinstance(document, dict) else None
    param = error.get("param") if isinstance(error, dict) else None
    return param if isinstance(param, str) else None

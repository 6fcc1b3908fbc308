"""What a call can end in. Needs no HTTP library, so that a program may catch these before it connects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PillionError(Exception):
    """Everything this package raises on its own. `code` is for programs, the message for people."""

    code = "client_error"

    def __init__(self, message: str, *, code: str | None = None, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.reasons = reasons
        if code is not None:
            self.code = code


class PillionConfigError(PillionError):
    """The client was set up in a way that cannot work (no key, a URL that is none, a ref that is none)."""

    code = "client_config"


class PillionConnectionError(PillionError):
    """The server was not reached, or it broke off in the middle of an answer."""

    code = "connection_failed"


class PillionTimeoutError(PillionError):
    """The time that the caller gave is over. What was begun on the server goes on."""

    code = "timed_out"


class PillionProtocolError(PillionError):
    """The server answered something that this client does not know: another version, or no Pillion."""

    code = "unexpected_answer"


class PillionFailedError(PillionError):
    """What was waited for has failed for good: job, instance, attachment. `code` is the server's."""

    code = "failed"


class PillionAPIError(PillionError):
    """An error the server gave: HTTP `status`, its `code`, every single finding in `reasons`.

    `request_id` finds it in the server's logs; `retry_after` is in seconds where the server named a time.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        reasons: tuple[str, ...] = (),
        request_id: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, code=code, reasons=reasons)
        self.status = status
        self.request_id = request_id
        self.param = param
        self.retry_after = retry_after


class InvalidRequestError(PillionAPIError):
    """400, 413, 422: the request, or the adapter in it, is not acceptable as it is."""


class AuthenticationError(PillionAPIError):
    """401: the key is missing, malformed or revoked."""


class PaymentRequiredError(PillionAPIError):
    """402: the balance does not cover it."""


class PermissionDeniedError(PillionAPIError):
    """403: the key's scopes do not cover it."""


class NotFoundError(PillionAPIError):
    """404: unknown, or not yours, or nowhere to be served."""


class ConflictError(PillionAPIError):
    """409: it stands against what is there (a name taken, an instance at capacity, an adapter in use)."""


class RateLimitError(PillionAPIError):
    """429: too many requests, or a quota is used up."""


class UnavailableError(PillionAPIError):
    """502, 503, 504: nothing was done; try again."""


_BY_STATUS: dict[int, type[PillionAPIError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    402: PaymentRequiredError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    413: InvalidRequestError,
    422: InvalidRequestError,
    429: RateLimitError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}


def from_answer(status: int, body: Any, headers: Mapping[str, str], url: str) -> PillionAPIError:
    """The error in an answer: `body` is its parsed JSON, or its text where it was none."""
    error = body.get("error") if isinstance(body, Mapping) else None
    if not isinstance(error, Mapping):
        error = {"message": _unshaped(status, body, headers, url), "code": f"http_{status}"}
    reasons = error.get("reasons")
    kind = _BY_STATUS.get(status, PillionAPIError)
    return kind(
        status,
        str(error.get("code") or error.get("type") or f"http_{status}"),
        str(error.get("message") or f"HTTP {status} from {url}"),
        tuple(str(reason) for reason in reasons) if isinstance(reasons, list) else (),
        headers.get("x-request-id"),
        error.get("param") if isinstance(error.get("param"), str) else None,
        _seconds(headers.get("retry-after")),
    )


def _unshaped(status: int, body: Any, headers: Mapping[str, str], url: str) -> str:
    """A sentence for an answer without OpenAI's error shape: a proxy in between, or no Pillion at all."""
    if 300 <= status < 400:
        return f"{url} redirects to {headers.get('location', 'elsewhere')}; use that server's own URL."
    text = " ".join(str(body).split())[:200]
    return f"HTTP {status} from {url}" + (f": {text}" if text else "")


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None

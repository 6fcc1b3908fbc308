"""HTTP to one server: errors read, lists paged, streams followed. Only reading is ever tried again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from pillion.sdk.errors import (
    PillionAPIError,
    PillionConfigError,
    PillionConnectionError,
    PillionError,
    PillionProtocolError,
    PillionTimeoutError,
    UnavailableError,
    from_answer,
)
from pillion.sdk.settings import Settings
from pillion.sdk.types import Record, read_list

READ_ATTEMPTS = 3
LONGEST_RETRY_AFTER_S = 5.0
CONNECT_TIMEOUT_S = 10.0

T = TypeVar("T", bound=Record)


def segment(value: str | int) -> str:
    """One segment of a path. Raises `PillionConfigError` for what would leave its place in the path."""
    text = str(value)
    if text in ("", ".", ".."):
        raise PillionConfigError(f"{text!r} names nothing: give a name, a row id or an id.")
    return quote(text, safe="")


class Transport:
    """`clock` and `sleep` are those of `time`, or a test's."""

    def __init__(
        self,
        settings: Settings,
        timeout: float = 60.0,
        *,
        http: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        headers = {"accept": "application/json", "user-agent": "pillion-sdk"}
        if settings.api_key:
            headers["authorization"] = f"Bearer {settings.api_key}"
        self.base_url = settings.base_url
        self.clock = clock
        self.sleep = sleep
        # Reading the certificates takes 0.1 s; a plain connection that goes nowhere else has no use for them.
        plain = settings.local and settings.base_url.startswith("http://")
        self._http = httpx.Client(
            base_url=settings.base_url,
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT_S)),
            transport=http,
            trust_env=not settings.local,
            follow_redirects=False,
            verify=not plain,
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """A JSON answer. Tried again, a few times, when the server is away for a moment."""
        for attempt in range(1, READ_ATTEMPTS):
            try:
                return self.send("GET", path, params=params)
            except (UnavailableError, PillionConnectionError) as error:
                wait = getattr(error, "retry_after", None) or 0.1 * 4**attempt
                if wait > LONGEST_RETRY_AFTER_S or isinstance(error.__cause__, httpx.ConnectError):
                    raise
                self.sleep(wait)
        return self.send("GET", path, params=params)

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        **content: Any,
    ) -> Any:
        """One request, one JSON answer (None where empty). `content` is httpx's json, data, files, headers.

        Raises `PillionAPIError` for the server's errors, `PillionConnectionError`, `PillionTimeoutError`.
        """
        with self._failures(f"{method} {path}"):
            response = self._http.request(
                method, path, params=_set(params), timeout=self._timeout(timeout), **content
            )
        if not response.is_success:
            raise self._error(response)
        return _parsed(response) if response.content else None

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        **content: Any,
    ) -> Iterator[httpx.Response]:
        """An answer that is read as it comes. `timeout` is the longest silence in it, None for no limit."""
        limits = httpx.Timeout(CONNECT_TIMEOUT_S, read=timeout)
        with (
            self._failures(f"{method} {path}"),
            self._http.stream(method, path, params=_set(params), timeout=limits, **content) as response,
        ):
            if not response.is_success:
                response.read()
                raise self._error(response)
            yield response

    def pages(
        self, kind: type[T], path: str, params: Mapping[str, Any] | None = None, limit: int | None = None
    ) -> Iterator[T]:
        """Every element of a list, page after page, at most `limit`."""
        query = dict(params or {})
        while limit is None or limit > 0:
            if limit is not None:
                query["limit"] = min(limit, 100)
            page = self.get(path, query)
            data = read_list(kind, page)[:limit]
            yield from data
            limit = None if limit is None else limit - len(data)
            following = page.get("next")
            if not page.get("has_more") or following is None or following == query.get("after"):
                return
            query["after"] = following

    def _timeout(self, timeout: float | None) -> Any:
        if timeout is None:
            return httpx.USE_CLIENT_DEFAULT
        return httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT_S))

    def _error(self, response: httpx.Response) -> PillionAPIError:
        try:
            body = response.json()
        except ValueError:
            body = response.text
        return from_answer(response.status_code, body, response.headers, str(response.url))

    @contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        """httpx's exceptions as ours."""
        try:
            yield
        except httpx.TimeoutException as error:
            raise _timed_out(self.base_url, what, error) from error
        except httpx.ConnectError as error:
            raise PillionConnectionError(
                f"Cannot reach {self.base_url} ({error}). Is `pillion serve` running there? "
                "Another server is named by --url or PILLION_URL."
            ) from error
        except httpx.HTTPError as error:
            raise PillionConnectionError(f"{self.base_url} broke off during {what}: {error}") from error
        except httpx.InvalidURL as error:
            raise PillionConfigError(f"{self.base_url!r} is not a server's URL: {error}") from error


def _timed_out(base_url: str, what: str, error: httpx.TimeoutException) -> PillionError:
    if isinstance(error, httpx.ConnectTimeout):
        return PillionConnectionError(f"Cannot reach {base_url}: no answer to the connection.")
    return PillionTimeoutError(f"{base_url} did not answer {what} in time.")


def _set(params: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if params is None else {name: value for name, value in params.items() if value is not None}


def _parsed(response: httpx.Response) -> Any:
    try:
        return json.loads(response.content)
    except ValueError as error:
        raise PillionProtocolError(
            f"{response.url} answered {response.headers.get('content-type', 'something')}, not JSON: "
            "is this a Pillion server?"
        ) from error

"""Chat over the data API, for scripts that want no OpenAI SDK."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pillion.sdk import streams
from pillion.sdk.transport import Transport

ADAPTER_HEADER = "x-pillion-adapter-id"
ANSWER_TIMEOUT_S = 600.0
PATH = "/v1/chat/completions"


class Chat:
    """`model` as SPEC §2; `adapter` picks an adapter where `model` names a base. `options`: the body's."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self, model: str, messages: Sequence[dict[str, Any]], *, adapter: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """The whole completion."""
        body = {"model": model, "messages": [*messages], **options}
        answer: dict[str, Any] = self._transport.send(
            "POST", PATH, json=body, headers=_headers(adapter), timeout=ANSWER_TIMEOUT_S
        )
        return answer

    def stream(
        self, model: str, messages: Sequence[dict[str, Any]], *, adapter: str | None = None, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Its chunks as they come. Closing the iterator stops the generation.

        Raises the error that a stream ends with, and `PillionConnectionError` (`stream_cut`) where it breaks.
        """
        body = {"model": model, "messages": [*messages], "stream": True, **options}
        with self._transport.stream(
            "POST", PATH, json=body, headers=_headers(adapter), timeout=ANSWER_TIMEOUT_S
        ) as response:
            yield from streams.completion_chunks(response)


def text_of(chunk: dict[str, Any]) -> str:
    """The text that a chunk adds, empty where it adds none."""
    choices = chunk.get("choices") or [{}]
    return (choices[0].get("delta") or {}).get("content") or ""


def _headers(adapter: str | None) -> dict[str, str]:
    return {} if adapter is None else {ADAPTER_HEADER: adapter}

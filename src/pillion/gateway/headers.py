"""Which header fields go on, which stay, and what the gateway reads from them (SPEC §4)."""

from __future__ import annotations

import re
from collections.abc import Callable

from pillion.core.errors import AmbiguousRefError, InvalidRequestError
from pillion.core.routing import ADAPTER_HEADER, Candidate, Route
from pillion.gateway.http import Fields, Head

REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# An engine gets these of the client's fields and no others: no keys, no cookies, nothing that steers an engine.
TO_ENGINE = frozenset({"accept", "content-type", "traceparent", "tracestate", "user-agent"})
# The server writes its own date; the rest tell of the engine what is nobody's business, or are ours to set.
NOT_FROM_ENGINE = HOP_BY_HOP | {
    "date",
    "server",
    "set-cookie",
    "x-request-id",
    "x-powered-by",
    "www-authenticate",
}
EXECUTION_HEADERS = ("execution-mode", "cloud-provider", "preferred-peer-id")


def request_id(head: Head, new_id: Callable[[], str]) -> str:
    """The client's `x-request-id` where it is short and plain, else a new one. Never trusted as a key."""
    given = head.first("x-request-id")
    return given if given is not None and REQUEST_ID.fullmatch(given) else new_id()


def adapter_ref(head: Head) -> str | None:
    """The adapter a header asks for. Both spellings may be there if they agree."""
    given = {value.strip() for name in (ADAPTER_HEADER, "x-hybrie-adapter-id") for value in head.all(name)}
    if len(given) > 1:
        raise AmbiguousRefError(
            "The adapter headers name different adapters. Send one.", param=ADAPTER_HEADER
        )
    return given.pop() if given else None


def check_execution(head: Head) -> None:
    """Refuses to leave this installation: no provider and no peer is configured for it."""
    for suffix in EXECUTION_HEADERS:
        for name in (f"x-pillion-{suffix}", f"x-hybrie-{suffix}"):
            for value in head.all(name):
                _check_execution(name, suffix, value.strip())


def _check_execution(name: str, suffix: str, value: str) -> None:
    if suffix != "execution-mode":
        raise InvalidRequestError(f"{name}: no such provider or peer is configured here.", param=name)
    if value == "cloud":
        raise InvalidRequestError(f"{name}: cloud needs a provider, and none is configured here.", param=name)
    if value not in ("local", "hybrid"):
        raise InvalidRequestError(f"{name} must be local, cloud or hybrid.", param=name)


def to_engine(head: Head, infer_key: str, request_id: str) -> list[tuple[str, str]]:
    kept = [(name, value) for name, value in head.fields if name in TO_ENGINE]
    ours = [
        ("authorization", f"Bearer {infer_key}"),
        ("accept-encoding", "identity"),
        ("x-request-id", request_id),
    ]
    return kept + ours


def to_control(head: Head, request_id: str) -> list[tuple[str, str]]:
    """All that the client sent, with its address and the request's id."""
    dropped = {"expect", "x-request-id", "x-forwarded-for"}
    forwarded = ", ".join([*head.all("x-forwarded-for"), head.peer])
    return [*end_to_end(head.fields, dropped), ("x-forwarded-for", forwarded), ("x-request-id", request_id)]


def to_container(head: Head, infer_key: str, request_id: str) -> list[tuple[str, str]]:
    """All that the client sent but its credentials and our own fields."""
    dropped = {"authorization", "cookie", "expect", "host", "x-request-id", "x-api-key", "x-forwarded-for"}
    kept = [
        (n, v) for n, v in end_to_end(head.fields, dropped) if not n.startswith(("x-pillion-", "x-hybrie-"))
    ]
    return [*kept, ("authorization", f"Bearer {infer_key}"), ("x-request-id", request_id)]


def from_engine(fields: Fields, *, rewritten: bool) -> list[tuple[str, str]]:
    """An engine's answer's fields for the client; the length goes where the body is rewritten."""
    dropped = NOT_FROM_ENGINE | {"content-length"} if rewritten else NOT_FROM_ENGINE
    return [(n, v) for n, v in end_to_end(fields, dropped) if not n.startswith("x-pillion-")]


def end_to_end(fields: Fields, dropped: frozenset[str] | set[str] = frozenset()) -> list[tuple[str, str]]:
    """Without what is meant for one hop alone, those named in `connection` included."""
    named = {
        token.strip().lower() for name, value in fields if name == "connection" for token in value.split(",")
    }
    gone = HOP_BY_HOP | named | dropped
    return [(name, value) for name, value in fields if name not in gone]


def served_by(route: Route, candidate: Candidate) -> list[tuple[str, str]]:
    """Who answered (SPEC §4)."""
    fields = [
        ("x-pillion-instance", str(candidate.instance.id)),
        ("x-pillion-replica", candidate.replica.id),
        ("x-pillion-region", candidate.replica.region),
    ]
    if route.adapter is not None:
        fields.append((ADAPTER_HEADER, route.adapter.id))
        fields.append(("x-pillion-adapter-version", str(route.adapter.version)))
    return fields

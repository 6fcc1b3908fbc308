"""Which header fields go on, which stay, and what the gateway reads from them (SPEC §4)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from pillion.core.errors import AmbiguousRefError, InvalidRequestError
from pillion.core.routing import ADAPTER_HEADER, Candidate, Route
from pillion.gateway.http import Fields, Head
from pillion.gateway.outbound import Origin
from pillion.gateway.replies import RawFields

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
_HOP_BY_HOP = frozenset(name.encode() for name in HOP_BY_HOP)
_NOT_FROM_ENGINE = frozenset(name.encode() for name in NOT_FROM_ENGINE) | {b"content-length"}
NOT_FROM_CONTROL = _HOP_BY_HOP | {b"date", b"x-request-id", b"content-length"}
NOT_FROM_CONTAINER = NOT_FROM_CONTROL | {b"server"}
EXECUTION_HEADERS = ("execution-mode", "cloud-provider", "preferred-peer-id")
_EXECUTION_NAMES = [(f"{prefix}-{s}", s) for s in EXECUTION_HEADERS for prefix in ("x-pillion", "x-hybrie")]
_ADAPTER_NAMES = (ADAPTER_HEADER, "x-hybrie-adapter-id")


def request_id(head: Head, new_id: Callable[[], str]) -> str:
    """The client's `x-request-id` where it is short and plain, else a new one. Never trusted as a key."""
    given = head.first("x-request-id")
    return given if given is not None and REQUEST_ID.fullmatch(given) else new_id()


def adapter_ref(head: Head) -> str | None:
    """The adapter a header asks for. Both spellings may be there if they agree."""
    given = {value.strip() for name in _ADAPTER_NAMES for value in head.all(name)}
    if len(given) > 1:
        raise AmbiguousRefError(
            "The adapter headers name different adapters. Send one.", param=ADAPTER_HEADER
        )
    return given.pop() if given else None


def checked_adapter_ref(head: Head) -> str | None:
    """`adapter_ref`, after `check_execution`."""
    if "adapter_ref" not in head.kept:
        ref = adapter_ref(head)
        check_execution(head)
        head.kept["adapter_ref"] = ref
    return head.kept["adapter_ref"]  # type: ignore[no-any-return]


def check_execution(head: Head) -> None:
    """Refuses to leave this installation: no provider and no peer is configured for it."""
    for name, suffix in _EXECUTION_NAMES:
        if head.first(name) is not None:
            for value in head.all(name):
                _check_execution(name, suffix, value.strip())


def _check_execution(name: str, suffix: str, value: str) -> None:
    if suffix != "execution-mode":
        raise InvalidRequestError(f"{name}: no such provider or peer is configured here.", param=name)
    if value == "cloud":
        raise InvalidRequestError(f"{name}: cloud needs a provider, and none is configured here.", param=name)
    if value not in ("local", "hybrid"):
        raise InvalidRequestError(f"{name} must be local, cloud or hybrid.", param=name)


def engine_prefix(path: str, origin: Origin, infer_key: str) -> bytes:
    """How every request to this replica begins."""
    return (
        f"POST {origin.prefix}{path} HTTP/1.1\r\nhost: {origin.authority}\r\n"
        f"authorization: Bearer {infer_key}\r\naccept-encoding: identity\r\n"
    ).encode("latin-1")


def to_engine(head: Head, request_id: str, length: int) -> bytes:
    """The rest of its head."""
    kept: str | None = head.kept.get("to_engine")
    if kept is None:
        kept = "".join([f"{name}: {value}\r\n" for name, value in head.fields if name in TO_ENGINE])
        head.kept["to_engine"] = kept
    return f"{kept}x-request-id: {request_id}\r\ncontent-length: {length}\r\n\r\n".encode("latin-1")


def to_engine_traced(head: Head, request_id: str, length: int, carried: Mapping[str, str]) -> bytes:
    """The same as part of a trace of ours: `carried` says of which."""
    kept = [(n, v) for n, v in head.fields if n in TO_ENGINE and n not in ("traceparent", "tracestate")]
    fields = [*kept, *carried.items(), ("x-request-id", request_id), ("content-length", str(length))]
    return "".join([f"{name}: {value}\r\n" for name, value in fields]).encode("latin-1") + b"\r\n"


def to_control(head: Head, client: str, request_id: str) -> list[tuple[str, str]]:
    """All that the client sent, with its address, which comes last and alone counts, and the request's id."""
    dropped = {"content-length", "expect", "x-request-id", "x-forwarded-for"}
    forwarded = ", ".join([*head.all("x-forwarded-for"), client])
    return [*end_to_end(head.fields, dropped), ("x-forwarded-for", forwarded), ("x-request-id", request_id)]


def to_container(head: Head, infer_key: str, request_id: str) -> list[tuple[str, str]]:
    """All that the client sent but its credentials and our own fields."""
    dropped = {
        "authorization",
        "content-length",
        "cookie",
        "expect",
        "host",
        "x-request-id",
        "x-api-key",
        "x-forwarded-for",
    }
    kept = [
        (n, v) for n, v in end_to_end(head.fields, dropped) if not n.startswith(("x-pillion-", "x-hybrie-"))
    ]
    return [*kept, ("authorization", f"Bearer {infer_key}"), ("x-request-id", request_id)]


def from_engine(fields: RawFields) -> bytes:
    """An engine's answer's fields for the client, without the length, as they go over the wire."""
    return back([field for field in fields if not field[0].startswith(b"x-pillion-")], _NOT_FROM_ENGINE)


def back(fields: RawFields, dropped: Collection[bytes]) -> bytes:
    """Fields of an answer as they go on, but those dropped and what was meant for one hop."""
    named: Collection[bytes] = ()
    if any(name == b"connection" for name, _ in fields):
        named = {
            token.strip().lower()
            for name, value in fields
            if name == b"connection"
            for token in value.split(b",")
        }
    return b"".join(
        [b"%b: %b\r\n" % (name, value) for name, value in fields if name not in dropped and name not in named]
    )


def end_to_end(fields: Fields, dropped: Collection[str] = frozenset()) -> list[tuple[str, str]]:
    """Without what is meant for one hop alone, those named in `connection` included."""
    named = {
        token.strip().lower() for name, value in fields if name == "connection" for token in value.split(",")
    }
    return [(n, v) for n, v in fields if not (n in HOP_BY_HOP or n in named or n in dropped)]


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

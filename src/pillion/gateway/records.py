"""What a spool is made of, as msgpack."""

from __future__ import annotations

import msgspec

from pillion.core.usage import Told, Used


class Opened(msgspec.Struct, frozen=True, array_like=True, tag="open"):
    """An admission: what would be told if the process died now, under `number`."""

    number: int
    lost: Used


class Known(msgspec.Struct, frozen=True, array_like=True, tag="known"):
    """Tokens of an open request, as last known."""

    number: int
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None


class Closed(msgspec.Struct, frozen=True, array_like=True, tag="closed"):
    """`number` is 0 for what was never open."""

    number: int
    told: Told


class Begun(msgspec.Struct, frozen=True, array_like=True, tag="begun"):
    """The head of a segment: the sequence and the number that come next."""

    seq: int
    number: int


Record = Opened | Known | Closed | Begun
decode = msgspec.msgpack.Decoder(Record).decode

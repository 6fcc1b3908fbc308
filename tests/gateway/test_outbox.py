"""When writes go out."""

from __future__ import annotations

import asyncio

from pillion.gateway.outbox import LARGE, Outbox


class Wire:
    def __init__(self, sent: list[bytes]) -> None:
        self._sent = sent
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes) -> None:
        self._sent.append(data)

    def close(self) -> None:
        self.closed = True


async def test_a_write_goes_out_at_once_where_rounds_have_one_and_with_its_like_where_they_have_several() -> (
    None
):
    sent: list[bytes] = []
    one, other, outbox = Wire(sent), Wire(sent), Outbox()
    outbox.write(one, b"1")
    assert sent == [b"1"]
    await asyncio.sleep(0)
    outbox.write(one, b"2")
    outbox.write(other, b"3")
    await asyncio.sleep(0)
    outbox.write(one, b"4")
    outbox.write(other, b"5")
    assert sent == [b"1", b"2", b"3"]
    await asyncio.sleep(0)
    outbox.write(one, b"6")
    assert sent == [b"1", b"2", b"3", b"4", b"5"]
    await asyncio.sleep(0)
    outbox.write(one, b"7")
    assert sent == [b"1", b"2", b"3", b"4", b"5", b"6", b"7"]


async def test_what_waits_goes_out_before_what_is_large_and_before_the_end() -> None:
    sent: list[bytes] = []
    wire, outbox = Wire(sent), Outbox()
    for _ in range(2):
        outbox.write(wire, b"-")
    await asyncio.sleep(0)
    sent.clear()
    outbox.write(wire, b"small")
    outbox.write(wire, b"x" * LARGE)
    assert [len(data) for data in sent] == [5, LARGE]
    outbox.write(wire, b"last")
    outbox.close(wire)
    assert sent[-1] == b"last"
    outbox.write(wire, b"too late")
    await asyncio.sleep(0)
    assert sent[-1] == b"last"

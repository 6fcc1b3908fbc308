"""The routing snapshot on its way from control to gateways."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.core import snapshot as wire

SNAPSHOT = wire.Snapshot(
    version=2**53,
    made_at=1.5,
    pepper=b"\x00\xff",
    keys={"abc": wire.Key("key_1", "acc_1", "00", ("inference",))},
    models=(wire.Model("qwen", None, "chat", True),),
    adapters=(
        wire.Adapter(
            "adp_1", 1, "acc_1", "mine", ("new", "old"), "qwen", 1, "adp_1@00", (3,), expires_at=9.0
        ),
    ),
    instances=(
        wire.Instance(
            3,
            None,
            "qwen",
            "qwen",
            True,
            None,
            (wire.Replica("r", "a", "http://x", "k", True, frozenset({"adp_1@00"})),),
        ),
    ),
)


def test_a_snapshot_survives_the_wire() -> None:
    assert wire.decode(wire.encode(SNAPSHOT)) == SNAPSHOT


def test_a_gateway_older_than_control_reads_what_it_knows() -> None:
    raw = msgspec.msgpack.decode(wire.encode(SNAPSHOT))
    raw["pools"] = []
    raw["models"][0]["context_length"] = 4096
    assert wire.decode(msgspec.msgpack.encode(raw)) == SNAPSHOT


@given(
    st.binary(max_size=300) | st.integers(min_value=0, max_value=200).map(lambda n: wire.encode(SNAPSHOT)[:n])
)
def test_what_is_no_snapshot_raises_what_is_promised(data: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        wire.decode(data)
